"""A way through the machine code of a function: what it has done to the stack and to registers, by what they held at its start."""

from __future__ import annotations

from dataclasses import dataclass, field

_MASK = (1 << 64) - 1
Place = tuple[str, int]
"""A stack address as (register at the start of the way, bytes above it)."""
NOWHERE: Place = ("", 0)
ALIGNED = "&"
"""What stands for the register of places below a stack pointer that was aligned, so that it is not known how far it moved."""


@dataclass(slots=True)
class Way:
    """A way through the code so far. A register holds what it held at the start, unless it is in one of these.

    sp: the stack pointer, ``NOWHERE`` while it is not known. lost: registers that hold something unknown.
    loaded: those that hold a word of the stack. near: those that hold a stack address. constants: those that hold a number.
    stored: words of the stack that were written, and the register whose first value they hold, or the word of the stack that was
        loaded before ("" for anything else).
    """

    pc: int
    sp: Place
    lost: set[str] = field(default_factory=set)
    loaded: dict[str, Place] = field(default_factory=dict)
    near: dict[str, Place] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)
    cfa_at: Place = NOWHERE
    stored: dict[Place, str | Place] = field(default_factory=dict)

    def fork(self, pc: int) -> Way:
        """The same way, going on elsewhere."""
        maps = (dict(self.loaded), dict(self.near), dict(self.constants), dict(self.stored))
        return Way(pc, self.sp, set(self.lost), *maps[:3], self.cfa_at, maps[3])

    def is_first(self, register: str) -> bool:
        """Whether a register holds what it held at the start."""
        return not any(register in known for known in (self.lost, self.loaded, self.near, self.constants))

    def overwrite(self, register: str) -> None:
        """A register holds something unknown from now on."""
        self.forget(register)
        self.lost.add(register)

    def forget(self, register: str) -> None:
        """What a register holds will be said anew."""
        self.lost.discard(register)
        self.loaded.pop(register, None)
        self.near.pop(register, None)
        self.constants.pop(register, None)

    def store(self, register: str, offset: int, cfa: Place) -> None:
        """A register is saved at the stack pointer plus ``offset``. cfa: the CFA, where the way began with the function."""
        if self.sp[0] == ALIGNED and self.near.get(register) == cfa:
            self.cfa_at = self.sp[0], self.sp[1] + offset
        if self.sp[0]:
            self.stored[self.sp[0], self.sp[1] + offset] = self.loaded.get(register, register if self.is_first(register) else "")

    def load(self, register: str, offset: int, sp: str, base: Place | None) -> None:
        """A register is restored from there (base: the stack pointer), if it is known where that is.

        What lies below the first stack pointer was not there at the start.
        """
        self.forget(register)
        if base is None or not base[0]:
            self.lost.add(register)
            return
        place = base[0], base[1] + offset
        known = self.stored.get(place)
        if isinstance(known, tuple):
            self.loaded[register] = known
        elif known is None and (place[0] != sp or place[1] >= 0):
            self.loaded[register] = place
        elif known and known != register:
            self.near[register] = known, 0
        elif not known:
            self.lost.add(register)
        if register == sp:
            # It is the caller's now, and words are counted from where it was at the start.
            self.sp = sp, 0

    def place(self, register: str) -> Place | None:
        """The stack address that a register holds, None where that is not known."""
        return self.near.get(register) or ((register, 0) if self.is_first(register) else None)

    def add(self, register: str, source: str, number: int | None, sp: str) -> None:
        """``register`` becomes ``source`` plus a number, None if that is unknown."""
        place = self.sp if source == sp else self.near.get(source)
        if place is None and register == sp and self.is_first(source):
            place = source, 0
        moved = None if place is None or not place[0] or number is None else (place[0], place[1] + _signed(number))
        constant = self.constants.get(source)
        if register == sp:
            self.sp = moved or NOWHERE
            return
        self.forget(register)
        if moved is not None:
            self.near[register] = moved
        elif constant is not None and number is not None:
            self.constants[register] = constant + number & _MASK
        else:
            self.lost.add(register)


def _signed(number: int) -> int:
    return (number + (1 << 63) & _MASK) - (1 << 63)
