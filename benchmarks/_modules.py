"""Guests of the benchmarks with kernel modules at work, and where these lie, as the guest's own sysfs says: nothing of it is
guestprof's.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from elftools.elf.elffile import ELFFile

from benchmarks._vmlinux import Vmlinux
from guestprof.debian import fetch_kernel
from guestprof.initramfs import INIT, Entry
from recording.errors import MissingDependencyError
from tests.qemu.guests import Machine
from tests.qemu.kernel_modules import find_modules, module_entries

_MODULES = ("overlay", "loop")
_INIT = b"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t sysfs sys /sys
while read -r file; do insmod "$file"; done </modules/list
for file in /sys/module/*/sections/.*text*; do echo "section $file $(cat $file)"; done
mkdir /layers /merged
mount -t tmpfs layers /layers
mkdir /layers/upper /layers/work
mount -t overlay -o lowerdir=/bin,upperdir=/layers/upper,workdir=/layers/work overlay /merged
dd if=/dev/zero of=/layers/disk bs=64k count=64 2>/dev/null
losetup /dev/loop0 /layers/disk
for i in 1 2 3 4; do
    (while :; do find /merged >/dev/null; cp /merged/busybox /merged/copy$i; rm /merged/copy$i; done) &
done
(while :; do dd if=/dev/loop0 of=/dev/null bs=64k iflag=direct 2>/dev/null; done) &
exec /bin/busybox sh /demo
"""
"""The demo's first process, with a file system and a block device of modules at work beside it."""
_SECTION = re.compile(r"^section /sys/module/(\w+)/sections/(\.\S+) 0x([0-9a-f]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """A module of a running guest: its file with DWARF, and where that file's sections of code are, by name → (start, end)."""

    name: str
    path: Path
    sections: dict[str, tuple[int, int]]

    @property
    def gdb_command(self) -> str:
        """What has gdb read it."""
        places = " ".join(f"-s {name} {start:#x}" for name, (start, _end) in self.sections.items())
        return f"add-symbol-file {self.path} {places}"


def module_workload(machine: Machine, suite: str) -> list[Entry]:
    """Files of an initramfs, its /init among them. Raises GuestprofError."""
    mode = stat.S_IFREG | 0o755
    entries = module_entries(find_modules(fetch_kernel(suite, machine.name), suite, _MODULES))
    return [*entries, Entry("demo", mode, INIT.encode()), Entry("init", mode, _INIT)]


def loaded_modules(console: str, vmlinux: Vmlinux) -> list[LoadedModule]:
    """What the guest's console told of them, with files of the ``-dbg`` package that vmlinux is of. Raises MissingDependencyError.

    Code of a module's start is left out: it is freed, and its place has other owners.
    """
    release = vmlinux.path.name.partition("-")[2]
    root = next(parent for parent in vmlinux.path.parents if parent.name == "debug") / "lib/modules" / release
    found: dict[str, LoadedModule] = {}
    for name, section, start in _SECTION.findall(console):
        if name not in found:
            path = next((path for path in root.rglob("*.ko*") if path.name.partition(".ko")[0].replace("-", "_") == name), None)
            if path is None:
                raise MissingDependencyError(f"{root} has no file of the module {name}; delete the package to fetch it anew")
            found[name] = LoadedModule(name, path, {})
        size = _sizes(found[name].path).get(section, 0)
        if size and ".init" not in section:
            found[name].sections[section] = (int(start, 16), int(start, 16) + size)
    return list(found.values())


def is_in(modules: Sequence[LoadedModule], address: int) -> bool:
    """Whether an address is of their code."""
    return any(start <= address < end for module in modules for start, end in module.sections.values())


def _sizes(path: Path) -> dict[str, int]:
    with path.open("rb") as file:
        return {section.name: section["sh_size"] for section in ELFFile(file).iter_sections()}


def with_modules(vmlinux: Vmlinux, modules: Sequence[LoadedModule], offset: int) -> Vmlinux:
    """Call frame information of vmlinux and of modules. offset: run-time addresses minus those of vmlinux."""
    ranges = sorted(
        [
            *zip(vmlinux.range_starts, vmlinux.range_ends, strict=True),
            *((start - offset, end - offset) for module in modules for start, end in module.sections.values()),
        ]
    )
    starts, ends = zip(*ranges, strict=True)
    return replace(vmlinux, range_starts=starts, range_ends=ends)
