"""Whether an interrupted function still holds its return address in the link register, or has it in a frame record.

A call leaves the return address in the link register (AAPCS64 6.2.1.3). A function that calls others saves it beside the caller's
frame pointer, at any place in its code; one that calls none never does. The halt may be anywhere, so the registers decide:

* The link register is no return address: the function uses it for something else, and has saved it before.
* It is one in the same function, behind a call of another one: the function has called that, and has a record of its own.
* Otherwise no call was made, or the record was taken down again: the link register is the return address. Where the record has it
  too, the function has just made that record, if there is an instruction for that before the PC (in a recursion the caller's record
  may say the same).
"""

from __future__ import annotations

from dataclasses import dataclass

_COLD = ".cold"
"""GCC's suffix for a part of a function that lies elsewhere."""


@dataclass(frozen=True, slots=True)
class LinkedPlace:
    """The link register's value. start, name: of the function that it returns to. target: what was called there, if known."""

    address: int
    start: int
    name: str
    target: int | None


def is_in_register(start: int, name: str, link: LinkedPlace, recorded: int | None, *, sets_frame: bool) -> bool:
    """Whether the function of that start and name returns to ``link``, which is a return address, and not to its record's.

    recorded: the return address in the record that the frame pointer leads to. sets_frame: code before the PC makes a record.
    """
    if _is_same(start, name, link) and link.target != start:
        return False
    return not (recorded == link.address and sets_frame)


def _is_same(start: int, name: str, link: LinkedPlace) -> bool:
    if start == link.start:
        return True
    if _COLD not in name and _COLD not in link.name:
        return False
    return name.partition(_COLD)[0] == link.name.partition(_COLD)[0]
