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
from guest.kernel import Kernel
from guest.user.mappings import Mapping as MemoryMapping
from recording.errors import BadImageError

VDSO = "[vdso]"
_PT_LOAD = 1
_PF_X = 1
_ELF32 = 1
# gdb's i386 registers up to gs, 4 bytes each; the processor's keep their 64-bit names.
_ORDER_32 = "rax rcx rdx rbx rsp rbp rsi rdi rip eflags".split()
_SIZE_32 = 64
_MAX_VDSO = 1 << 16


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
        """Keep what is in no file of the image, or use this in its place."""
        copy = self._directory / f"{len(self.copies)}-{PurePosixPath(name).name.strip('[]')}"
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


def find_layout(mappings: Sequence[MemoryMapping], directory: str, files: GuestFiles) -> Layout | None:
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
        elif not is_32bit:
            found[VDSO] = mapping.start
    rest = sorted(item for item in found.items() if item[0] != program)
    return Layout(((program, found[program]), *rest), is_32bit)


def read_vdso(kernel: Kernel) -> bytes:
    """The library that the kernel maps into processes: processes have no more of it in memory than they have used.

    ``struct vdso_image`` begins with its address and size (arch/x86/include/asm/vdso.h). Raises BadImageError, GuestMemoryError.
    """
    symbol = kernel.symbols.find("vdso_image_64")
    if symbol is None:
        raise BadImageError("the kernel has no symbol vdso_image_64, so gdb cannot be told of the vDSO")
    address, size = struct.unpack("<QQ", kernel.space.read(symbol.address, 16))
    return kernel.space.read(address, min(size, _MAX_VDSO))


def executable_segments(image: bytes) -> list[bytes]:
    """The code of an ELF file of 64 bits."""
    return [image[at : at + length] for flags, at, _address, length in _loads(image) if flags & _PF_X]


def _address_of_offset(image: bytes, offset: int) -> int:
    """Link-time address minus file offset in the segment that a mapping from ``offset`` on shows."""
    for _flags, at, address, length in _loads(image):
        if at - at % PAGE <= offset < at + length:
            return address - at
    raise BadImageError(f"no segment holds offset {offset:#x}; the guest runs another file than its disk image has")


def _loads(image: bytes) -> list[tuple[int, int, int, int]]:
    """Flags, offset, address and size in the file of all PT_LOAD segments (System V ABI, program header)."""
    is_32bit = image[4] == _ELF32
    # Where program headers are, how large and many; and what is wanted of each.
    table, sizes, word, places = ("<I", 42, "<I", (24, 4, 8, 16)) if is_32bit else ("<Q", 54, "<Q", (4, 8, 16, 32))
    (start,) = struct.unpack_from(table, image, 28 if is_32bit else 32)
    size, count = struct.unpack_from("<HH", image, sizes)
    loads = []
    for header in range(start, start + size * count, size):
        (kind,) = struct.unpack_from("<I", image, header)
        (flags,) = struct.unpack_from("<I", image, header + places[0])
        at, address, length = (int(struct.unpack_from(word, image, header + place)[0]) for place in places[1:])
        if kind == _PT_LOAD:
            loads.append((int(flags), at, address, length))
    return loads


class UserGdbs:
    """A gdb for each layout. Ends them all when the ``with`` block ends."""

    def __init__(self, files: GuestFiles, directory: Path) -> None:
        self._files = files
        self._directory = directory
        self._gdbs: dict[Layout, Gdb] = {}

    def walk(self, layout: Layout, registers: Mapping[str, int], read_page: ReadPage) -> tuple[list[tuple[int, str]], str]:
        """Frames of gdb's, leaf first, as (pc, function), and why they end. Raises GdbFailedError."""
        if layout not in self._gdbs:
            self._gdbs[layout] = Gdb([f"source {self._commands(layout)}"])
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
