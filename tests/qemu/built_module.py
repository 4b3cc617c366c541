"""A stock kernel and a C source of ``tests/guests`` become a module for it, built with the kernel's own headers and build tools.

Debian's packages of headers expect to lie in /usr/src; here they are put together in a directory of the test's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from guestprof.debian import fetch_package
from recording.errors import MissingDependencyError

_SOURCES = Path(__file__).parent.parent / "guests"
_RELEASE = re.compile(r"vmlinuz-(?P<version>.+)-(?P<flavour>cloud-amd64)")


def build_module(kernel: Path, suite: str, name: str, directory: Path) -> bytes:
    """The module's file. kernel: an amd64 image that ``guestprof.debian.fetch_kernel(suite)`` gave; directory: an empty one.

    Raises MissingDependencyError where the headers cannot be had, or make or the compiler fails.
    """
    release = _RELEASE.fullmatch(kernel.name)
    if release is None:
        raise MissingDependencyError(f"{kernel.name} is no cloud kernel of Debian's, whose headers are known")
    headers = f"linux-headers-{release['version']}-{release['flavour']}"
    common = f"linux-headers-{release['version']}-common"
    series = ".".join(release["version"].split(".")[:2])
    kbuild = f"linux-kbuild-{series}"
    tools = fetch_package(suite, "amd64", re.escape(kbuild)) / "usr" / "lib" / kbuild
    sources = {package: directory / package for package in (headers, common)}
    for package, joined in sources.items():
        joined.mkdir()
        for entry in (fetch_package(suite, "amd64", re.escape(package)) / "usr" / "src" / package).iterdir():
            # What the packages link to each other (scripts, tools) is of the third one.
            (joined / entry.name).symlink_to(tools / entry.name if entry.is_symlink() else entry)
    (sources[headers] / "Makefile").unlink()
    (sources[headers] / "Makefile").write_text(f"include {sources[common]}/Makefile\n")
    module = directory / "module"
    module.mkdir()
    shutil.copy(_SOURCES / f"{name}.c", module)
    (module / "Makefile").write_text(f"obj-m := {name}.o\n")
    # The compiler that built the kernel, by its name with a version, may not be installed; others of its kind do.
    compiler = () if shutil.which("gcc-12") else ("CC=gcc",)
    command = ["make", "-C", str(sources[headers]), f"M={module}", *compiler, "modules"]
    environment = {key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except FileNotFoundError:
        raise MissingDependencyError("make is not installed, so no kernel module can be built; install make and gcc") from None
    if result.returncode != 0:
        raise MissingDependencyError(f"the module {name} cannot be built for {kernel.name}: {result.stderr[-500:]}")
    return (module / f"{name}.ko").read_bytes()
