"""Colours of tables on a terminal, as perf has them: large shares stand out, and what kind of code a function is."""

from __future__ import annotations

from dataclasses import dataclass

import click

from recording.model import FrameKind

_LARGE, _NOTABLE = 0.05, 0.005
_KINDS = {
    FrameKind.KERNEL: "yellow",
    FrameKind.MODULE: "magenta",
    FrameKind.BPF: "magenta",
    FrameKind.USER: "blue",
    FrameKind.FIRMWARE: "cyan",
}


@dataclass(frozen=True, slots=True)
class Paint:
    """Colours finished text, padding included, so that columns stay where they are. Nothing where a table is not coloured."""

    is_on: bool

    def share(self, text: str, share: float) -> str:
        """A percentage, by how large it is."""
        if not self.is_on or share < _NOTABLE:
            return text
        return click.style(text, fg="red" if share >= _LARGE else "green")

    def kind(self, text: str, kind: FrameKind) -> str:
        """The name of a function, by where its code is."""
        colour = _KINDS.get(kind)
        return text if not self.is_on or colour is None else click.style(text, fg=colour)

    def faint(self, text: str) -> str:
        """What is beside the point."""
        return click.style(text, dim=True) if self.is_on else text


PLAIN = Paint(is_on=False)
