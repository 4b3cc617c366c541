"""Debug information of the host unwinds what the guest has no table for: a module of a stock kernel that was loaded without ORC.

The same captures unwound without that file are the counterpart, and show that it was this which made the stacks whole.
"""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from guestprof.initramfs import Entry, find_busybox, pack_newc
from recording.errors import MissingDependencyError
from recording.model import Callchain, StackEnd, UnwindData
from recording.names import Namer
from recording.reader import Recording
from sampler.replay import replay
from tests.conftest import skip_loudly
from tests.qemu.built_module import build_module
from tests.qemu.command import guestprof
from tests.qemu.guests import PC

pytestmark = pytest.mark.qemu

DONE = "guestprof: done"
MIN_STACKS = 30
MIN_WHOLE = 0.95
"""The first stacks may be walked before the list of modules was read again."""
CALLERS = ["spin", "spinner_init", "do_one_initcall", "do_init_module"]
INIT = f"""#!/bin/busybox sh
busybox insmod /spinner.ko ms=1000
echo "{DONE}"
while :; do busybox sleep 10; done
"""


def without_orc(module: bytes, directory: Path) -> bytes:
    """A module's file as a compiler alone makes it."""
    path = directory / "stripped.ko"
    path.write_bytes(module)
    sections = [f"--remove-section={prefix}.orc_unwind{end}" for prefix in ("", ".rela") for end in ("", "_ip")]
    subprocess.run(["objcopy", *sections, "--strip-debug", str(path)], check=True)
    return path.read_bytes()


def spinning(recording: Recording, chains: list[Callchain]) -> list[tuple[list[str], Callchain]]:
    """Stacks in the module's loop: the names from there on, outwards."""
    namer, found = Namer(recording.images()), []
    for chain in chains:
        names = [namer.name(frame, 0).name for frame in chain.frames]
        if "spin" in names:
            found.append((names[names.index("spin") :], chain))
    return found


def whole(stacks: list[tuple[list[str], Callchain]]) -> float:
    """The share that lead through the module to user mode, without guesses."""
    good = [
        names[: len(CALLERS)] == CALLERS and chain.end is StackEnd.USER_ENTRY and not any(frame.guess for frame in chain.frames)
        for names, chain in stacks
    ]
    return sum(good) / len(good)


def test_a_module_without_orc(guest_kernel: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = guest_kernel("bookworm")
    sources, files = tmp_path / "sources", tmp_path / "files"
    sources.mkdir()
    files.mkdir()
    try:
        module = build_module(kernel, "bookworm", "spinner", sources)
        busybox = find_busybox()
    except MissingDependencyError as error:
        skip_loudly(str(error))
    (files / "spinner.ko").write_bytes(module)
    entries = [
        *(Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "root")),
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry("bin/busybox", stat.S_IFREG | 0o755, busybox),
        Entry("init", stat.S_IFREG | 0o755, INIT.encode()),
        Entry("spinner.ko", stat.S_IFREG | 0o644, without_orc(module, tmp_path)),
    ]
    initramfs, path = tmp_path / "initramfs", tmp_path / "boot.guestprof"
    initramfs.write_bytes(pack_newc(entries))
    machine = ("-accel", "tcg", "-cpu", PC.cpu, "-m", "256", "-nodefaults", "-display", "none", "-serial", "stdio")
    command = (PC.qemu, *machine, "-kernel", kernel, "-initrd", initramfs, "-append", "console=ttyS0")
    guestprof("boot", "-F", "200", "--raw", "--symbol-dir", files, "--until-console", DONE, "-q", "-o", path, "--", *command)
    with Recording.open(path) as recording:
        recorded = {(sample.halt, sample.vcpu): sample.callchain for sample in recording.samples()}
        stacks = spinning(recording, list(recorded.values()))
        assert len(stacks) >= MIN_STACKS
        assert whole(stacks) >= MIN_WHOLE, [(names, chain.end) for names, chain in stacks if names[: len(CALLERS)] != CALLERS]

        again = [chain for _sample, chain in replay(recording)]
        assert whole(spinning(recording, again)) >= MIN_WHOLE

        read = Recording.unwind_data

        def without_file(self: Recording, unwinder: int) -> UnwindData | None:
            data = read(self, unwinder)
            return None if data is None else replace(data, frames=())

        monkeypatch.setattr(Recording, "unwind_data", without_file)
        memory_alone = spinning(recording, [chain for _sample, chain in replay(recording)])
        assert len(memory_alone) >= MIN_STACKS
        assert whole(memory_alone) < 1 - MIN_WHOLE
