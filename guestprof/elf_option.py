"""``--elf``: the files whose code a guest runs, and where."""

from __future__ import annotations

import re
from pathlib import Path

import click

from guest.elf.images import ImageRequest
from recording.model import FrameKind


class ImageType(click.ParamType[ImageRequest]):
    """``FILE[@BIAS][,root=ADDRESS][,kind=KIND]``; numbers decimal or, with 0x, hexadecimal."""

    name = "image"
    _PLACE = re.compile(
        r"(?P<path>.+?)(?:@(?P<bias>-?(?:0[xX][0-9a-fA-F]+|[0-9]+)))?(?P<rest>(?:,(?:root|kind)=[^,]*)*)", re.DOTALL
    )

    def convert(self, value: str | ImageRequest, parameter: click.Parameter | None, context: click.Context | None) -> ImageRequest:
        """What is asked for."""
        if isinstance(value, ImageRequest):
            return value
        found = self._PLACE.fullmatch(value)
        if found is None:
            self.fail("a file is missing; write FILE, FILE@BIAS or FILE@BIAS,root=ADDRESS", parameter, context)
        words = dict(word.split("=", 1) for word in found["rest"].split(",") if word)
        try:
            root = int(words["root"], 0) if "root" in words else None
            bias = int(found["bias"] or "0", 0)
        except ValueError:
            self.fail(f"{value!r} has no address where one belongs; write it as 0x1000 or 4096", parameter, context)
        kind = words.get("kind", FrameKind.KERNEL if root is None else FrameKind.USER)
        if kind not in _KINDS:
            self.fail(f"{kind!r} is no kind of code; write {', '.join(_KINDS)}", parameter, context)
        return ImageRequest(Path(found["path"]), bias, root, FrameKind(kind))


_KINDS = (FrameKind.KERNEL, FrameKind.USER, FrameKind.FIRMWARE)
elf_option = click.option(
    "--elf",
    "images",
    type=ImageType(),
    multiple=True,
    metavar="FILE[@BIAS]",
    help="An ELF file that the guest runs (kernel, unikernel, firmware), BIAS bytes from where it is linked; no Linux is needed."
    " FILE[@BIAS],root=ADDRESS: only with that page table. ...,kind=firmware or user: what it is shown as.",
)
