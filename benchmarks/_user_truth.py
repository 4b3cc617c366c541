"""A halted thread of the guest becomes its user stack as a real gdb sees it, with the program's own files.

The files are taken out of the disk image by e2fsprogs, their places from what the process has mapped: a gdb for each such layout.
gdb is handed the registers as QEMU sent them (in the kernel: those that were saved on entry) and memory read at that moment.
Of guestprof it has these mappings, and in the kernel the saved registers; nothing of how a user stack is walked.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from benchmarks._gdb import PAGE, Gdb, ReadPage, encode_registers
from guest.user.mappings import Mapping as MemoryMapping
from recording.errors import BadImageError

VDSO = "[vdso]"
_PT_LOAD = 1
_ELF32 = 1
# gdb's i386 registers up to gs, 4 bytes each; the processor's keep their 64-bit names.
_ORDER_32 = "rax rcx rdx rbx rsp rbp rsi rdi rip eflags".split()
_SIZE_32 = 64
_MAX_VDSO_PAGES = 16


class GuestFiles:
    """Files of the disk image that a guest was started with."""

    def __init__(self, image: Path, directory: Path) -> None:
        """``directory``: for the copies."""
        self._raw = directory / "disk.raw"
        self._directory = directory
        self.copies: dict[str, Path] = {}
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(image), str(self._raw)], check=True)

    def copy(self, path: str) -> Path:
        """A copy of a file. Raises BadImageError."""
        if path not in self.copies:
            copy = self._directory / f"{len(self.copies)}-{PurePosixPath(path).name}"
            command = ["debugfs", "-R", f"dump {path} {copy}", str(self._raw)]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            if not copy.exists() or not copy.stat().st_size:
                raise BadImageError(f"debugfs cannot take {path} out of {self._raw}: {result.stderr.strip()}")
            self.copies[path] = copy
        return self.copies[path]

    def add(self, name: str, data: bytes) -> None:
        """Keep what is in no file."""
        copy = self._directory / f"{len(self.copies)}-{name.strip('[]')}"
        copy.write_bytes(data)
        self.copies[name] = copy


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a process has its files: (path, run-time minus link-time addresses), its program first."""

    files: tuple[tuple[str, int], ...]
    is_32bit: bool

    @property
    def program(self) -> str:
        """The program's name."""
        return PurePosixPath(self.files[0][0]).name

    @property
    def biases(self) -> Mapping[str, int]:
        """By path."""
        return dict(self.files)


def find_layout(mappings: Sequence[MemoryMapping], directory: str, files: GuestFiles, read_page: ReadPage) -> Layout | None:
    """The layout of a process, None where its program is not in ``directory``."""
    code = [mapping for mapping in mappings if mapping.is_executable and (mapping.file is not None or mapping.path == VDSO)]
    program = next((mapping.path for mapping in code if mapping.file is not None and mapping.path.startswith(directory)), None)
    if program is None:
        return None
    is_32bit = files.copy(program).read_bytes()[4] == _ELF32
    found: dict[str, int] = {}
    for mapping in code:
        if mapping.path in found:
            continue
        if mapping.file is not None:
            image = files.copy(mapping.path).read_bytes()
            found[mapping.path] = mapping.start - mapping.offset - _address_of_offset(image, mapping.offset)
        elif not is_32bit and _keep_vdso(mapping, files, read_page):
            found[VDSO] = mapping.start
    rest = sorted(item for item in found.items() if item[0] != program)
    return Layout(((program, found[program]), *rest), is_32bit)


def _keep_vdso(mapping: MemoryMapping, files: GuestFiles, read_page: ReadPage) -> bool:
    """The kernel's library is in memory only, all of it where a process has used all of it. Whether there is a copy now."""
    if VDSO not in files.copies:
        pages = [read_page(address) for address in range(mapping.start, mapping.end, PAGE)[:_MAX_VDSO_PAGES]]
        if any(page is None for page in pages):
            return False
        files.add(VDSO, b"".join(page for page in pages if page is not None))
    return True


def _address_of_offset(image: bytes, offset: int) -> int:
    """Link-time address minus file offset in the segment that a mapping from ``offset`` on shows (System V ABI, program header)."""
    # Where program headers are, and in one of them: offset, address, size in the file.
    table, sizes, word, places = ("<I", 42, "<I", (4, 8, 16)) if image[4] == _ELF32 else ("<Q", 54, "<Q", (8, 16, 32))
    (start,) = struct.unpack_from(table, image, 28 if image[4] == _ELF32 else 32)
    size, count = struct.unpack_from("<HH", image, sizes)
    for header in range(start, start + size * count, size):
        (kind,) = struct.unpack_from("<I", image, header)
        at, address, length = (int(struct.unpack_from(word, image, header + place)[0]) for place in places)
        if kind == _PT_LOAD and at - at % PAGE <= offset < at + length:
            return address - at
    raise BadImageError(f"no segment holds offset {offset:#x}; the guest runs another file than its disk image has")


class UserGdbs:
    """A gdb for each layout. Ends them all when the ``with`` block ends."""

    def __init__(self, files: GuestFiles, directory: Path) -> None:
        self._files = files
        self._directory = directory
        self._gdbs: dict[Layout, Gdb] = {}

    def walk(self, layout: Layout, registers: Mapping[str, int], read_page: ReadPage) -> tuple[list[tuple[int, str]], str]:
        """Frames of gdb's, leaf first, as (pc, function), and why they end. Raises GdbFailedError."""
        if layout not in self._gdbs:
            self._gdbs[layout] = Gdb(f"source {self._commands(layout)}")
        walk = self._gdbs[layout].walk(_encode_32(registers) if layout.is_32bit else encode_registers(registers), read_page)
        return [(frame.pc, frame.name) for frame in walk.frames], walk.stop

    def _commands(self, layout: Layout) -> Path:
        lines = ["set architecture i386"] if layout.is_32bit else []
        for command, (path, bias) in zip(("symbol-file", *["add-symbol-file"] * len(layout.files)), layout.files, strict=False):
            lines.append(f"{command} -o {bias:#x} {self._files.copy(path)}")
        script = self._directory / f"gdb-{len(self._gdbs)}"
        script.write_text("\n".join(lines) + "\n", "utf-8")
        return script

    def close(self) -> None:
        """End every gdb."""
        for gdb in self._gdbs.values():
            gdb.close()
        self._gdbs.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _encode_32(values: Mapping[str, int]) -> bytes:
    packed = b"".join(struct.pack("<I", values.get(name, 0) & 0xFFFF_FFFF) for name in _ORDER_32)
    return packed.ljust(_SIZE_32, b"\0")
