"""A stock x86-64 kernel image becomes the ELF file in it, for machines that are slow at unpacking it themselves."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from recording.errors import MissingDependencyError

_LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
"""Debian's 6.1 compresses its kernel so (lz4_Frame_format.md, legacy frame; arch/x86/boot/compressed/Makefile)."""


def unpack_kernel(image: Path, path: Path) -> Path:
    """Writes the ELF file, which QEMU enters by PVH. Raises MissingDependencyError without lz4, or of another format."""
    if shutil.which("lz4") is None:
        raise MissingDependencyError("lz4 is not installed, so no kernel can be unpacked (Debian: apt-get install lz4)")
    data = image.read_bytes()
    start = data.find(_LZ4_LEGACY_MAGIC)
    # The decompressor ends with an error at what follows the stream in the image; the output counts.
    result = subprocess.run(["lz4", "-dc"], input=data[max(0, start) :], capture_output=True, check=False)
    if start < 0 or not result.stdout.startswith(b"\x7fELF"):
        raise MissingDependencyError(f"{image.name} holds no kernel that lz4 unpacks")
    path.write_bytes(result.stdout)
    return path
