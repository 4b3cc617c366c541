"""``.gnu_debugdata`` becomes the small ELF file that is packed in it: the symbols that Fedora and its kin leave in stripped files.

(GDB manual, "MiniDebugInfo": xz, holding .symtab of the functions that .dynsym does not have.)
"""

from __future__ import annotations

import lzma

from guest.memory import Steps
from guest.user.contents import BytesContents, FileContents
from recording.errors import BadImageError

MAX_PACKED = 1 << 24
_MAX_UNPACKED = 1 << 26
_MAX_MEMORY = 1 << 26
"""What unpacking may use: xz' own dictionary of 8 MiB (level 6) and more than that of level 9 on so small a file."""
_STEP = 1 << 17


def read_debugdata(contents: FileContents, offset: int, size: int) -> Steps[FileContents | None]:
    """The file that is packed at a file offset, None where that is not known now. Raises BadImageError where it is damaged."""
    if size > MAX_PACKED:
        raise BadImageError(f".gnu_debugdata of {size} bytes is longer than any; the file is damaged")
    packed = contents.read(offset, size)
    if packed is None:
        return None
    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_MEMORY)
        pieces: list[bytes] = []
        total = 0
        while not unpacker.eof:
            piece = unpacker.decompress(packed, _STEP)
            packed = b""
            total += len(piece)
            if total > _MAX_UNPACKED or (not piece and unpacker.needs_input):
                raise BadImageError(f".gnu_debugdata of {size} bytes is cut short or unpacks to more than {_MAX_UNPACKED} bytes")
            pieces.append(piece)
            yield
    except lzma.LZMAError as error:
        raise BadImageError(f".gnu_debugdata of {size} bytes is damaged: {error}") from error
    return BytesContents(b"".join(pieces))
