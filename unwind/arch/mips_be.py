"""mips: mipsel with the bytes of words the other way round. Code of files (``--elf``) only; its Linux is not known."""

from __future__ import annotations

from dataclasses import replace

from unwind.arch import no_linux
from unwind.arch.mipsel import MIPSEL
from unwind.image_facts import waits_behind
from unwind.instructions import Instruction

_O32 = MIPSEL.user_abis[0]
_LINEAR = MIPSEL.paging.tables({}).linear


def _swapped(code: bytes) -> bytes:
    """Instructions of 4 bytes each, in the other order; what is left over is left away."""
    return b"".join(code[at : at + 4][::-1] for at in range(0, len(code) - 3, 4))


def _decode(address: int, code: bytes) -> Instruction | None:
    return None if _O32.decode is None else _O32.decode(address, _swapped(code))


MIPS = replace(
    MIPSEL,
    name="mips",
    qemu_targets=("mips",),
    byteorder="big",
    paging=no_linux.paging("big", _LINEAR),
    shows_image=lambda _registers: False,
    kernel_code=replace(MIPSEL.kernel_code, follows_call=lambda before: MIPSEL.kernel_code.follows_call(_swapped(before))),
    user_abis=(replace(_O32, signal_code=(), decode=_decode),),
    images=replace(MIPSEL.images, is_waiting=waits_behind(b"\x42\x00\x00\x20")),
)
