"""Colours of tables on a terminal, as perf has them: large shares stand out, and what kind of code a function is."""

from __future__ import annotations

from dataclasses import dataclass

from recording.model import FrameKind

_LARGE, _NOTABLE = 0.05, 0.005
_RED, _GREEN, _YELLOW, _BLUE, _MAGENTA, _CYAN = range(31, 37)
_FAINT = 2
"""Select graphic rendition (ECMA-48, 8.3.117)."""
_KINDS = {
    FrameKind.KERNEL: _YELLOW,
    FrameKind.MODULE: _MAGENTA,
    FrameKind.BPF: _MAGENTA,
    FrameKind.USER: _BLUE,
    FrameKind.FIRMWARE: _CYAN,
}


@dataclass(frozen=True, slots=True)
class Paint:
    """Colours finished text, padding included, so that columns stay where they are. Nothing where a table is not coloured."""

    is_on: bool

    def share(self, text: str, share: float) -> str:
        """A percentage, by how large it is."""
        if not self.is_on or share < _NOTABLE:
            return text
        return _styled(text, _RED if share >= _LARGE else _GREEN)

    def kind(self, text: str, kind: FrameKind) -> str:
        """The name of a function, by where its code is."""
        colour = _KINDS.get(kind)
        return text if not self.is_on or colour is None else _styled(text, colour)

    def change(self, text: str, change: float) -> str:
        """A difference, by whether there is more of it or less."""
        return _styled(text, _RED if change > 0 else _GREEN) if self.is_on else text

    def faint(self, text: str) -> str:
        """What is beside the point."""
        return _styled(text, _FAINT) if self.is_on else text


def _styled(text: str, style: int) -> str:
    return f"\x1b[{style}m{text}\x1b[0m"


PLAIN = Paint(is_on=False)
