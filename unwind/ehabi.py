"""Unwind tables of the Arm EHABI ("Exception Handling ABI for the Arm Architecture") become rows: ``.ARM.exidx``, ``.ARM.extab``.

An index entry is two words, sorted by address: a function's start, relative to its own place (31 bits), and

    1                       the function cannot be unwound
    0x80......              its unwinding instructions, at most three bytes
    anything else           where in the table these are, relative to its own place

There is one entry for a function, not one for each of its instructions: it is true where the function calls another one, or may
raise an exception. Neighbours with the same instructions may share one. Code without any has one that says so, as have functions
that nothing is to be unwound through. Amid prologues and epilogues the code itself tells more (``arm_frame.py``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from recording.errors import BadImageError
from recording.model import OrcData
from unwind.rules import Memory, Row, RowKind, Saved

EHABI_VERSION = 0x8000
"""What stands in place of an ORC version where a recording keeps an EHABI table."""
NAMES = (*(f"r{number}" for number in range(13)), "sp", "lr", "pc")
"""gdb's names of the registers, by number."""
CALLEE_SAVED = range(4, 12)
"""AAPCS32 6.1.1"""

_SP, _LR, _PC = 13, 14, 15
_CANTUNWIND = 1
_FINISH = 0xB0
_MAX_ENTRIES = 1 << 21
_Place = tuple[str, int]
"""A register and what is added to it."""


def _signed31(word: int) -> int:
    return (word & 0x7FFF_FFFF) - (word << 1 & 0x8000_0000)


@dataclass
class _Frame:
    """The virtual stack pointer and where registers were popped from, in the words of the frame's own registers."""

    base: str = "sp"
    offset: int = 0
    saved: dict[int, _Place] = field(default_factory=dict)
    stack_pointer: _Place | None = None

    def pop(self, numbers: list[int]) -> None:
        for number in numbers:
            if number == _SP:
                self.stack_pointer = self.base, self.offset
            else:
                self.saved[number] = self.base, self.offset
            self.offset += 4

    def row(self) -> Row:
        base, offset = self.stack_pointer or (self.base, self.offset)
        memory = Memory.NONE if self.stack_pointer is None else Memory.BEFORE

        def saved(name: str, place: _Place) -> Saved:
            if memory is Memory.NONE and place[0] == base:
                return Saved(name, None, place[1] - offset)
            return Saved(name, *place)

        place = self.saved.get(_PC, self.saved.get(_LR))
        return_address = saved("pc", place) if place is not None else Saved("pc", "lr", 0, is_value=True)
        return Row(
            RowKind.CALL,
            base,
            offset,
            memory,
            tuple(saved(NAMES[number], where) for number, where in self.saved.items() if number < _SP),
            tuple(NAMES[number] for number in CALLEE_SAVED if number not in self.saved),
            return_address=None if return_address == Saved("pc", None, -4) else return_address,
        )


def lower(instructions: bytes) -> Row | None:
    """Unwinding instructions (EHABI 10.3) as a row, None for those that refuse, are reserved, or cut off."""
    frame, code = _Frame(), iter(instructions)
    try:
        for byte in code:
            if byte == _FINISH:
                break
            if not _apply(frame, byte, code):
                return None
    except StopIteration:
        return None
    return frame.row()


def _apply(frame: _Frame, byte: int, code: Iterator[int]) -> bool:
    """One instruction; whether it is known."""
    if byte < 0x80:
        change = (byte & 0x3F) * 4 + 4
        frame.offset += -change if byte & 0x40 else change
    elif byte < 0x90:
        mask = (byte & 0x0F) << 8 | next(code)
        frame.pop([4 + bit for bit in range(12) if mask >> bit & 1])
        return mask != 0  # "refuse to unwind"
    elif byte < 0xA0:
        number = byte & 0x0F
        if number in (_SP, _PC) or number in frame.saved:
            return False
        frame.base, frame.offset = NAMES[number], 0
    elif byte < 0xB0:
        frame.pop([*range(4, 5 + (byte & 7)), *([_LR] if byte & 8 else [])])
    else:
        return _apply_rare(frame, byte, code)
    return True


def _apply_rare(frame: _Frame, byte: int, code: Iterator[int]) -> bool:
    if byte == 0xB1:
        mask = next(code)
        frame.pop([bit for bit in range(4) if mask >> bit & 1])
        return 0 < mask < 0x10
    if byte == 0xB2:
        shift = number = 0
        while True:
            part = next(code)
            number |= (part & 0x7F) << shift
            shift += 7
            if not part & 0x80 or shift > 28:
                break
        frame.offset += 0x204 + number * 4
    elif byte in (0xB3, 0xC8, 0xC9):
        frame.offset += ((next(code) & 0x0F) + 1) * 8 + (4 if byte == 0xB3 else 0)
    elif 0xB8 <= byte <= 0xBF or 0xC0 <= byte <= 0xC5 or 0xD0 <= byte <= 0xD7:
        frame.offset += ((byte & 7) + 1) * 8 + (4 if byte < 0xC0 else 0)
    elif byte == 0xB4:  # the return address' authentication code
        frame.offset += 4
    elif byte == 0xC6:
        frame.offset += ((next(code) & 0x0F) + 1) * 8
    elif byte == 0xC7:
        mask = next(code)
        frame.offset += 4 * mask.bit_count()
        return 0 < mask < 0x10
    else:
        # 0xb5 makes no difference to an address that was not signed, and no program of 32 bits signs them so far.
        return False
    return True


class EhabiIndex:
    """An index and its table, wherever their words are."""

    __slots__ = ("_address", "_count", "_rows", "_word")

    def __init__(self, address: int, count: int, word: Callable[[int], int | None]) -> None:
        """address: of the index. word: the one at an address, None where there is none; what it raises goes to the caller."""
        self._address, self._count, self._word = address, count, word
        self._rows: dict[int, Row | None] = {}

    def __len__(self) -> int:
        return self._count

    def _start(self, entry: int) -> int:
        place = self._address + 8 * entry
        return place + _signed31(self._word(place) or 0) & 0xFFFF_FFFF

    def find(self, lookup_pc: int) -> tuple[int, Row | None]:
        """The start of the code that the entry for an address is of (0: there is none), and its row, None if it has none."""
        entry = bisect_right(range(self._count), lookup_pc, key=self._start) - 1
        if entry < 0:
            return 0, None
        if entry not in self._rows:
            code = self._instructions(self._address + 8 * entry + 4)
            self._rows[entry] = None if code is None else lower(code)
        return self._start(entry), self._rows[entry]

    def find_call_row(self, lookup_pc: int) -> Row | None:
        """The row for an address in a program, true for calls alone."""
        _start, row = self.find(lookup_pc)
        # What a signal interrupted has its registers there, too, but in a state that no row for calls can say.
        is_signal = row is not None and any(saved.register == "r0" for saved in row.saved)
        return None if row is None or is_signal else replace(row, only_calls=True)

    def _instructions(self, place: int) -> bytes | None:
        """The unwinding instructions of the entry whose second word lies there."""
        word = self._word(place)
        if word is None or word == _CANTUNWIND:
            return None
        if word & 0x8000_0000:
            return word.to_bytes(4, "big")[1:] if word >> 24 == 0x80 else None
        place = place + _signed31(word) & 0xFFFF_FFFF
        word = self._word(place)
        if word is None:
            return None
        skipped = 1
        if not word & 0x8000_0000:
            # A routine of the language's own; behind its address it has the count of words like the second and third of Arm's.
            place += 4
            word = self._word(place)
            if word is None:
                return None
            count = word >> 24
        elif word >> 24 == 0x80:
            count = 0
        elif word >> 24 in (0x81, 0x82):
            count, skipped = word >> 16 & 0xFF, 2
        else:
            return None
        words = [self._word(place + 4 * at) for at in range(count + 1)]
        if None in words:
            return None
        return b"".join(each.to_bytes(4, "big") for each in words if each is not None)[skipped:]


class EhabiTable(EhabiIndex):
    """The kernel's index and its table, which lies right behind it."""

    __slots__ = ("_data", "_index_size")

    def __init__(self, address: int, index: bytes, table: bytes) -> None:
        """address: run-time address of the index. Raises BadImageError where it is no index."""
        count = len(index) // 8
        if not 0 < count <= _MAX_ENTRIES or len(index) % 8 or address % 4:
            raise BadImageError(f"the kernel's unwind index at {address:#x} has {len(index)} bytes, which cannot be")
        self._index_size = len(index)
        self._data = index + table[: len(table) & ~3]
        super().__init__(address, count, self._read_word)
        probes = [self._start(at) for at in range(0, count, max(1, count // 4096))]
        if probes != sorted(probes):
            raise BadImageError(f"the kernel's unwind index at {address:#x} is not sorted by address")

    def to_data(self) -> OrcData:
        """The table as a recording keeps it."""
        return OrcData(EHABI_VERSION, self._address, self._data[: self._index_size], self._data[self._index_size :])

    @classmethod
    def from_data(cls, data: OrcData) -> EhabiTable:
        """What ``to_data`` gave. Raises BadImageError where it is damaged."""
        return cls(data.address, data.ip_table, data.entries)

    def _read_word(self, address: int) -> int | None:
        offset = address - self._address
        return int.from_bytes(self._data[offset : offset + 4], "little") if 0 <= offset <= len(self._data) - 4 else None
