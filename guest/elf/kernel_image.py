"""A kernel or module as distributions install it (bzImage, zImage, Image.gz, vmlinuz, .ko.xz ...) → the ELF file that is in it.

A boot image is a small program with the kernel compressed in it. Where it begins differs between architectures and versions, so it
is looked for as the kernel's own scripts/extract-vmlinux does it: at each place that begins like compressed data. What is
unpacked lies in a temporary file that is gone when the ``DebugFile`` is closed.
"""

from __future__ import annotations

import mmap
import re
import tempfile
from pathlib import Path

from guest.elf.debug_file import DebugFile
from guest.unpack import UNPACKERS
from recording.errors import BadImageError, MissingDependencyError

_ELF = b"\x7fELF"
_MAX_TRIES = 64
_RAW_MAGIC = (b"ARM\x64", b"RSC\x05")
"""At 56 of an uncompressed Image (Documentation/arch/arm64/booting.rst, riscv/boot-image-header.rst)."""


def open_image(path: Path) -> DebugFile:
    """An ELF file, or the one that is packed in a file.

    Raises BadImageError where it holds none (an ARM or arm64 Image is unpacked, but no ELF file), MissingDependencyError where a
    decompressor is missing.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) == _ELF:
                found = DebugFile(path)
                # MIPS' and PowerPC's boot images are ELF files that have the kernel within them.
                if found.has_symbols or found.is_relocatable or found.build_id is not None:
                    return found
                found.close()
            file.seek(0)
            data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        raise BadImageError(f"cannot read {path}: {error}; name a kernel image or an ELF file") from error
    with data:
        return _unpacked(path, data)


def _unpacked(path: Path, data: mmap.mmap) -> DebugFile:
    missing: MissingDependencyError | None = None
    others = int(data[56:60] in _RAW_MAGIC)
    view = memoryview(data)
    try:
        pattern = re.compile(b"|".join(re.escape(magic) for magic, _ in UNPACKERS))
        for tries, match in enumerate(pattern.finditer(data)):
            if tries >= _MAX_TRIES:
                break
            try:
                found = _try(path, view[match.start() :])
            except MissingDependencyError as error:
                missing = error
                continue
            except BadImageError:
                continue
            if found is not None:
                return found
            others += 1
    finally:
        view.release()
    if missing is not None:
        raise missing
    what = "a kernel that is no ELF file (the image has neither symbols nor debug information)" if others else "no ELF file"
    raise BadImageError(f"{path} holds {what}; name the vmlinux of its -dbg package")


def _try(path: Path, packed: memoryview) -> DebugFile | None:
    """What is unpacked from some place on; None where that is no ELF file."""
    unpack = next(unpack for magic, unpack in UNPACKERS if packed[: len(magic)] == magic)
    with tempfile.NamedTemporaryFile(prefix="guestprof-") as file:
        pieces = unpack(packed)
        head = b""
        for piece in pieces:
            head = head or piece[:4]
            if head and head != _ELF:
                return None
            file.write(piece)
        file.flush()
        return DebugFile(Path(file.name), shown=path) if head else None
