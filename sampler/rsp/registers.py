"""A stub's target description (XML) → where each register lies in a ``g`` reply, and such a reply → register values.

gdb manual, appendix G "Target Descriptions"; E.2 for ``g``: registers follow one another in the order of their numbers, two
digits a byte, ``xx`` where a byte is not available.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, cast
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from recording.errors import BadRecordingError, StubError, UnsupportedTargetError
from unwind.arch import Architecture
from unwind.arch.registry import ARCHITECTURES, find_architecture

ByteOrder = Literal["little", "big"]

_XINCLUDE = "{http://www.w3.org/2001/XInclude}include"
_ROOT = re.compile(rb"<target(?=[\s>])")
_MAX_FILES = 64
_MAX_REGISTERS = 4096
_MAX_BITS = 1 << 16


@dataclass(frozen=True, slots=True)
class Register:
    """One register in a ``g`` reply; offset and size in bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class TargetDescription:
    """What the XML says: gdb's name of the architecture ("" if it names none), registers by number as (number, name, bytes)."""

    architecture: str
    registers: tuple[tuple[int, str, int], ...]


@dataclass(frozen=True, slots=True)
class RegisterLayout:
    """Where the registers lie in a ``g`` reply of ``size`` bytes."""

    registers: tuple[Register, ...]
    byteorder: ByteOrder

    @property
    def size(self) -> int:
        """Bytes up to the end of the last register."""
        return max((register.offset + register.size for register in self.registers), default=0)

    @property
    def index(self) -> dict[str, Register]:
        """Registers by name; the first one of a name counts."""
        return {register.name: register for register in reversed(self.registers)}

    @classmethod
    def from_description(cls, description: TargetDescription, byteorder: ByteOrder, g_size: int) -> Self:
        """The registers of a description that a ``g`` reply of ``g_size`` bytes holds: QEMU sends the first ones only."""
        registers = []
        offset = 0
        for _number, name, size in description.registers:
            if offset + size > g_size:
                break
            registers.append(Register(name, offset, size))
            offset += size
        return cls(tuple(registers), byteorder)

    @classmethod
    def from_fixed(cls, architecture: Architecture) -> Self:
        """The layout of an architecture whose stub describes nothing."""
        registers = []
        offset = 0
        for name, size in architecture.fixed_registers:
            registers.append(Register(name, offset, size))
            offset += size
        return cls(tuple(registers), architecture.byteorder)

    def with_registers(self, more: Iterable[tuple[int, str, int]], g_size: int) -> Self:
        """The layout of a ``g`` reply of ``g_size`` bytes with the replies of further registers (number, name, bytes) behind it."""
        registers = list(self.registers)
        for _number, name, size in more:
            registers.append(Register(name, g_size, size))
            g_size += size
        return type(self)(tuple(registers), self.byteorder)

    def to_json(self) -> dict[str, Any]:
        """Plain values, so that a raw capture can be read back."""
        return {"byteorder": self.byteorder, "registers": [[r.name, r.offset, r.size] for r in self.registers]}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The layout that ``to_json`` gave; raises BadRecordingError for anything else."""
        try:
            fields = cast("dict[str, Any]", value)
            byteorder = fields["byteorder"]
            registers = tuple(Register(str(name), int(offset), int(size)) for name, offset, size in fields["registers"])
        except (TypeError, KeyError, ValueError) as error:
            raise BadRecordingError(f"the recording's register layout is damaged ({error!r}); record again") from error
        sound = all(0 <= r.offset <= _MAX_BITS and 0 < r.size <= _MAX_BITS // 8 for r in registers)
        if byteorder not in ("little", "big") or len(registers) > _MAX_REGISTERS or not sound:
            raise BadRecordingError("the recording's register layout is damaged (impossible offsets or sizes); record again")
        return cls(registers, byteorder)


class RegisterFile(Mapping[str, int]):
    """The registers of one vCPU in one halt. A value is decoded when it is asked for; one that is not available is absent."""

    __slots__ = ("_digits", "_index", "_layout", "_raw")

    def __init__(self, layout: RegisterLayout, digits: bytes, index: Mapping[str, Register] | None = None) -> None:
        """``digits`` is a ``g`` reply. Pass ``layout.index`` where files share a layout."""
        self._layout = layout
        self._digits = digits
        self._index = layout.index if index is None else index
        self._raw: bytes | None = None

    @classmethod
    def from_raw(cls, layout: RegisterLayout, raw: bytes) -> Self:
        """The file of the bytes that ``raw`` gave."""
        return cls(layout, binascii.hexlify(raw))

    def reversed(self) -> Self:
        """The file with the bytes of each register in the other order."""
        digits = bytearray(self._digits)
        for register in self._layout.registers:
            first, last = register.offset * 2, (register.offset + register.size) * 2
            if last <= len(digits):
                own = self._digits[first:last]
                digits[first:last] = b"".join(own[at : at + 2] for at in range(len(own) - 2, -1, -2))
        return type(self)(self._layout, bytes(digits), self._index)

    def with_values(self, values: Mapping[str, int]) -> Self:
        """The file with other values of registers that the layout has; what does not fit into one is cut."""
        digits = bytearray(self._digits.ljust(2 * self._layout.size, b"x"))
        for name, value in values.items():
            register = self._index[name]
            own = (value & (1 << 8 * register.size) - 1).to_bytes(register.size, self._layout.byteorder)
            digits[2 * register.offset : 2 * (register.offset + register.size)] = binascii.hexlify(own)
        return type(self)(self._layout, bytes(digits), self._index)

    @property
    def layout(self) -> RegisterLayout:
        """Where the registers lie in ``raw``."""
        return self._layout

    @property
    def raw(self) -> bytes:
        """The reply's bytes, zero where they are not available; raises StubError if it is no register reply."""
        if self._raw is None:
            digits = self._digits
            try:
                self._raw = binascii.unhexlify(digits.replace(b"x", b"0") if b"x" in digits else digits)
            except binascii.Error as error:
                raise StubError(f"the stub answered g with {digits[:40]!r}, which is no register dump") from error
        return self._raw

    def __getitem__(self, name: str) -> int:
        register = self._index[name]
        if not self._available(register):
            raise KeyError(name)
        return int.from_bytes(self.raw[register.offset : register.offset + register.size], self._layout.byteorder)

    def __iter__(self) -> Iterator[str]:
        return (name for name, register in self._index.items() if self._available(register))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _available(self, register: Register) -> bool:
        first, last = register.offset * 2, (register.offset + register.size) * 2
        return last <= len(self._digits) and b"x" not in self._digits[first:last]


def parse_target_description(read_file: Callable[[str], bytes]) -> TargetDescription:
    """The description that begins at ``target.xml``; ``read_file`` gives the stub's files by name.

    Raises StubError for XML that is damaged, too large or includes itself.
    """
    architecture = ""
    registers: list[tuple[int, str, int]] = []
    files = 0
    pending: list[Iterator[Element]] = []

    def open_file(name: str) -> Iterator[Element]:
        nonlocal files
        files += 1
        if files > _MAX_FILES:
            raise StubError(f"the stub's target description includes more than {_MAX_FILES} files; it is no sound gdb stub")
        # Document order over the whole tree: registers take the number after the one before unless they state theirs.
        return _parse_xml(name, read_file(name)).iter()

    pending.append(open_file("target.xml"))
    while pending:
        element = next(pending[-1], None)
        if element is None:
            pending.pop()
        elif element.tag == _XINCLUDE:
            pending.append(open_file(element.get("href", "")))
        elif element.tag == "architecture":
            architecture = architecture or (element.text or "").strip()
        elif element.tag == "reg":
            number = _number(element, "regnum", registers[-1][0] + 1 if registers else 0, _MAX_BITS)
            bits = _number(element, "bitsize", None, _MAX_BITS)
            registers.append((number, element.get("name", ""), (bits + 7) // 8))
            if len(registers) > _MAX_REGISTERS:
                raise StubError(f"the stub describes more than {_MAX_REGISTERS} registers; it is no sound gdb stub")
    return TargetDescription(architecture, tuple(sorted(registers, key=lambda register: register[0])))


def _parse_xml(name: str, text: bytes) -> Element:
    # QEMU (7.2) leaves the prefix of xi:include undeclared, which a namespace-aware parser refuses.
    if b"<xi:include" in text and b"xmlns:xi" not in text:
        text = _ROOT.sub(b'<target xmlns:xi="http://www.w3.org/2001/XInclude"', text, count=1)
    try:
        return fromstring(text)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise StubError(f"the stub's target description {name!r} is damaged: {error}") from error


def _number(element: Element, attribute: str, default: int | None, limit: int) -> int:
    text = element.get(attribute)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal() or len(text) > 9 or int(text) > limit:
        raise StubError(f"the stub's target description gives register {element.get('name')!r} the {attribute} {text!r}")
    return int(text)


def choose_architecture(description: TargetDescription | None, hint: str | None, g_size: int) -> Architecture:
    """The architecture of a target, by its description, else by QEMU's own name for it, else by the only fixed layout that fits.

    hint: what ``query-target`` or the binary's name says. g_size: bytes of a ``g`` reply. Raises UnsupportedTargetError.
    """
    named = description.architecture if description else ""
    known = ", ".join(architecture.name for architecture in ARCHITECTURES)
    for name in (named, hint or ""):
        if not name:
            continue
        architecture = find_architecture(name)
        if architecture is None:
            raise UnsupportedTargetError(
                f"the guest's architecture is {name!r}, which guestprof cannot profile yet (it knows {known});"
                " a gdb that knows it can: --engine gdb"
            )
        return architecture
    # Of two that differ in their byte order alone, the one whose Linux is known.
    layed_out = {each.fixed_registers: each for each in reversed(ARCHITECTURES) if each.fixed_registers}
    layouts = [(each, RegisterLayout.from_fixed(each).size) for each in layed_out.values()]
    # Those that QEMU describes have registers behind what the fixed layout knows.
    fitting = [each for each, size in layouts if size == g_size] or [
        each for each, size in layouts if each.gdb_architectures and size <= g_size < 2 * size + 512
    ]
    if len(fitting) != 1:
        raise UnsupportedTargetError(
            f"the stub does not say which architecture the guest has and its {g_size} bytes of registers fit none of {known};"
            " give the QMP socket with --qmp"
        )
    return fitting[0]


def layout_of(description: TargetDescription | None, architecture: Architecture, g_size: int) -> RegisterLayout:
    """The layout of a target's ``g`` reply; raises UnsupportedTargetError if it lacks a register that unwinding needs."""
    if description is not None and description.registers:
        layout = RegisterLayout.from_description(description, architecture.byteorder, g_size)
    else:
        layout = RegisterLayout.from_fixed(architecture)
    _require(layout, (architecture.pc, architecture.sp, architecture.fp), g_size)
    return layout


def system_registers_of(description: TargetDescription | None, architecture: Architecture) -> tuple[tuple[int, str, int], ...]:
    """Number, our name and bytes of the registers that are read one by one; raises UnsupportedTargetError if one is missing."""
    described = {} if description is None else {name: (number, size) for number, name, size in reversed(description.registers)}
    found = []
    for names in architecture.system_registers:
        known = next((described[name] for name in names if name in described), None)
        if known is None:
            raise UnsupportedTargetError(
                f"the stub does not describe the register {names[0]}, without which a kernel's memory cannot be read;"
                " use a newer QEMU, or --engine gdb if the processor has no MMU"
            )
        found.append((known[0], names[0], known[1]))
    return tuple(found)


def _require(layout: RegisterLayout, names: Iterable[str], g_size: int) -> None:
    missing = [name for name in names if name not in layout.index]
    if missing or layout.size > g_size:
        what = f"has no {', '.join(missing)}" if missing else f"is {layout.size} bytes long"
        raise UnsupportedTargetError(f"the stub's register dump of {g_size} bytes does not fit its description, which {what}")
