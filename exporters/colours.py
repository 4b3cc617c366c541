"""What kinds of code are called and how they are coloured, in every picture: in a few tints each, so that neighbours differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Colour:
    """words: for legends. tints: backgrounds of dark text, as ``#rrggbb``."""

    words: str
    tints: tuple[str, ...]


COLOURS = {
    "process": Colour("process", ("#e3dccb", "#e8e2d4", "#ded6c2", "#ece7dc", "#e1dbc9", "#e6deca")),
    "kernel": Colour("kernel", ("#fda94f", "#fbb765", "#fd9e3c", "#fcc078", "#f9a85e", "#ffb34d")),
    "module": Colour("kernel module", ("#f28b9b", "#f59ba6", "#ee8095", "#f7a8b4", "#f08ea6", "#f3959a")),
    "user": Colour("user code", ("#86b9ea", "#95c3ef", "#7bb0e4", "#a2cbf1", "#8cbde0", "#90bcf2")),
    "bpf": Colour("BPF", ("#73c9b4", "#82d0bd", "#68c1ab", "#8fd6c5", "#79c9c0", "#7bcfae")),
    "firmware": Colour("firmware, before the kernel", ("#bda4e6", "#c7b1ea", "#b598e0", "#cfbcee", "#b9a5ec", "#c4a6e4")),
    "unknown": Colour("unknown", ("#c9cc7a", "#d1d388", "#c1c46d", "#d8da96", "#cbc97f", "#c8d07c")),
    "idle": Colour("idle", ("#cfd4da", "#d6dae0", "#c9ced5", "#dce0e4", "#d0d6da", "#d2d4dc")),
}
"""By ``FrameKind`` and what pictures show beside: processes, and the idle loop waiting. In the order of legends."""
TINTS = 6
WHOLE = "#ececec"
"""Of the frame that stands for everything."""
