"""``docs/boot-analysis.md`` again: every command in it is run on a real guest, and what it prints is put below it.

A Debian disk image (tests/qemu/disk_guest.py) is booted under TCG from power-on to its login prompt, then compared with itself on
another processor; Debian's kernel is compared under KVM and TCG as far as it gets here. Takes about five minutes.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from guestprof.debian import fetch_kernel
from recording.errors import GuestprofError
from tests.qemu.disk_guest import AMD64, debian_disk
from tests.qemu.unpacked import unpack_kernel

DOCUMENT = Path(__file__).parent.parent / "docs" / "boot-analysis.md"
_BLOCK = re.compile(r"```console\n(?P<body>.*?)```", re.DOTALL)


def main() -> int:
    """Run the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work there, and keep the recordings")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gp-analysis-") as name:
        directory = Path(name) if options.keep is None else options.keep
        directory.mkdir(parents=True, exist_ok=True)
        try:
            _put(directory / "debian.qcow2", debian_disk(AMD64))
            unpack_kernel(fetch_kernel("bookworm"), directory / "vmlinux")
        except GuestprofError as error:
            print(f"boot_analysis: {error}", file=sys.stderr)
            return 1
        (directory / "bin").mkdir(exist_ok=True)
        program = directory / "bin" / "guestprof"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m guestprof "$@"\n', "utf-8")
        program.chmod(0o755)
        text = DOCUMENT.read_text("utf-8")
        DOCUMENT.write_text(_BLOCK.sub(lambda block: f"```console\n{answered(block['body'], directory)}```", text), "utf-8")
    return 0


def _put(place: Path, image: Path) -> None:
    place.unlink(missing_ok=True)
    place.symlink_to(image)


def answered(block: str, directory: Path) -> str:
    """The commands of a block (lines that begin with ``$``, and what a backslash joins to them), each with what it prints now."""
    root = str(DOCUMENT.parent.parent)
    variables = {
        **os.environ,
        "PATH": f"{directory / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": root,
        "LC_ALL": "C.UTF-8",
    }
    lines, told, command = block.splitlines(), [], ""
    for line in lines:
        if not command and not line.startswith("$ "):
            continue
        told.append(line)
        command += line.removeprefix("$ ").removesuffix("\\")
        if line.endswith("\\"):
            continue
        print(f"$ {command}", file=sys.stderr)
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=directory,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise GuestprofError(f"{command}: {result.stderr}")
        told += [each.rstrip() for each in result.stdout.splitlines()]
        command = ""
    return "".join(f"{line}\n" for line in told)


if __name__ == "__main__":
    sys.exit(main())
