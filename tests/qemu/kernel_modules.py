"""A stock kernel image and names of modules become the files to load, dependencies first: for guests whose initramfs loads modules.

Packages carry no ``modules.dep`` (depmod writes it when they are installed), so dependencies come from the modules themselves:
the ``.modinfo`` section, NUL-terminated ``key=value`` strings (include/linux/moduleparam.h; ``depends``: scripts/mod/modpost.c).
"""

from __future__ import annotations

import io
import lzma
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile

from guestprof.debian import fetch_package
from guestprof.initramfs import Entry
from recording.errors import MissingDependencyError

MODULES_LIST = "modules/list"
"""The initramfs file that names the modules in loading order, a path a line: ``while read -r f; do insmod "$f"; done <FILE``."""

_ROOTS = ("usr/lib/modules", "lib/modules")


@dataclass(frozen=True, slots=True)
class KernelModule:
    """A module of a kernel package: its name as /proc/modules shows it, and its file, uncompressed."""

    name: str
    data: bytes


def find_modules(kernel: Path, suite: str, names: Sequence[str]) -> tuple[KernelModule, ...]:
    """The named modules and what they depend on, in the order to load them; what is built into the kernel is left out.

    kernel: an image that ``guestprof.debian.fetch_kernel(suite)`` gave.
    Raises MissingDependencyError where the kernel has no such module.
    """
    directory = modules_directory(kernel, suite)
    files = {_module_name(path): path for path in directory.rglob("*.ko*")}
    built_in = _built_in(kernel)
    found: dict[str, KernelModule] = {}

    def add(name: str, asked_by: tuple[str, ...]) -> None:
        if name in found or name in asked_by:
            return
        if name not in files:
            # Where the list of built-in modules lies in another package, a missing file is all there is to go by.
            if name in built_in or not built_in:
                return
            message = f"{directory.name} has no module {name}; name one that it has, or another kernel"
            raise MissingDependencyError(message)
        data = _read_module(files[name])
        for other in _dependencies(data):
            add(other, (*asked_by, name))
        found[name] = KernelModule(name, data)

    for name in names:
        add(name.replace("-", "_"), ())
    return tuple(found.values())


def modules_directory(kernel: Path, suite: str) -> Path:
    """The directory of a kernel's modules: in its own package, or in linux-modules-VERSION, where Debian has put them since 7.x.

    Raises MissingDependencyError.
    """
    version = kernel.parent.name if kernel.name == "vmlinuz" else kernel.name.partition("-")[2]
    package = _package_of(kernel)
    architecture = package.name.rpartition("_")[2]
    directory = _find_directory(package, version)
    if directory is None:
        package = fetch_package(suite, architecture, rf"linux-modules-{re.escape(version)}", package.parent)
        directory = _find_directory(package, version)
    if directory is None:
        message = f"package {package.name} holds no modules of {version}; delete {package.parent} to fetch kernel and modules anew"
        raise MissingDependencyError(message)
    return directory


def module_entries(modules: Sequence[KernelModule]) -> list[Entry]:
    """The modules as files of an initramfs (``guestprof.initramfs.pack_newc``): /modules/NAME.ko, and /modules/list."""
    files = [Entry(f"modules/{module.name}.ko", stat.S_IFREG | 0o644, module.data) for module in modules]
    listing = "".join(f"/modules/{module.name}.ko\n" for module in modules).encode()
    return [Entry("modules", stat.S_IFDIR | 0o755), *files, Entry(MODULES_LIST, stat.S_IFREG | 0o644, listing)]


def _package_of(kernel: Path) -> Path:
    """The unpacked package that an image lies in: the directory named like package_version_architecture."""
    for parent in kernel.parents:
        if re.fullmatch(r"linux-[^_]+_[^_]+_[a-z0-9-]+", parent.name):
            return parent
    message = f"{kernel} lies in no kernel package; take the image that fetch_kernel gives"
    raise MissingDependencyError(message)


def _find_directory(package: Path, version: str) -> Path | None:
    return next((path for root in _ROOTS if ((path := package / root / version) / "kernel").is_dir()), None)


def _built_in(kernel: Path) -> frozenset[str]:
    """Names of what modules.builtin lists, if the kernel's package has that file."""
    lists = [path for root in _ROOTS for path in _package_of(kernel).glob(f"{root}/*/modules.builtin")]
    return frozenset(_module_name(Path(line)) for path in lists for line in path.read_text("utf-8").split())


def _module_name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")


def _read_module(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _dependencies(data: bytes) -> list[str]:
    """What must be loaded before."""
    section = ELFFile(io.BytesIO(data)).get_section_by_name(".modinfo")
    strings = section.data().decode("utf-8", "replace").split("\0") if section is not None else []
    fields = [string.partition("=") for string in strings]
    names = [name for key, _, value in fields if key == "depends" for name in value.split(",")]
    return [name.replace("-", "_") for name in names if name]
