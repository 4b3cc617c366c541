"""The kernel's ORC tables become rows (Linux arch/x86/include/asm/orc_types.h, kernel/unwind_orc.c, all four x86 versions).

An entry is ``s16 sp_offset, s16 bp_offset, u16 flags``. The flags changed three times:

    version   kernels      flags
    1         4.14 - 6.2   sp_reg:4 bp_reg:4 type:2 end:1
    2         6.3          sp_reg:4 bp_reg:4 type:2 signal:1 end:1
    3         6.4 - 7.0    sp_reg:4 bp_reg:4 type:3 signal:1
    4         7.1          as 3 with the registers numbered anew

No version number is stored. ``.orc_header`` (6.4, 6.3.10) is a hash of the source; a header that is not known is refused,
because a wrong reading would give wrong stacks. Without a header the content tells the versions apart.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from enum import IntEnum

from recording.errors import BadImageError
from recording.model import OrcData
from unwind.rules import Memory, Row, RowKind, Saved

_ENTRY = struct.Struct("<hhH")
_MAX_ENTRIES = 8_000_000


class OrcVersion(IntEnum):
    """Format of an ORC table, see the module's table."""

    V1 = 1
    V2 = 2
    V3 = 3
    V4 = 4


_HEADERS = {
    bytes.fromhex("db84aed4103b31dd51e017f8f79783ca985c2c51"): OrcVersion.V2,
    bytes.fromhex("fe5d32bf581bd63b2ca9a5c65ba5a625eab3fe24"): OrcVersion.V3,
    bytes.fromhex("137c36ad7627c4dd55932176bb0ecdbd5041fc82"): OrcVersion.V4,
}
"""First 20 bytes of ``.orc_header`` (scripts/orc_hash.sh over orc_types.h)."""


@dataclass(frozen=True, slots=True)
class _Base:
    """What a register number of an entry stands for: a register, read through memory or not, with its offset or without."""

    register: str
    memory: Memory = Memory.NONE
    has_offset: bool = True


_BASES_V1: dict[int, _Base] = {
    2: _Base("rdx", has_offset=False),
    3: _Base("rdi", has_offset=False),
    4: _Base("rbp"),
    5: _Base("rsp"),
    6: _Base("r10", has_offset=False),
    7: _Base("r13", has_offset=False),
    8: _Base("rbp", Memory.BEFORE),
    9: _Base("rsp", Memory.AFTER),
}
_BASES_V4: dict[int, _Base] = {
    1: _Base("rax", has_offset=False),
    2: _Base("rdx", has_offset=False),
    3: _Base("rsp"),
    4: _Base("rbp"),
    5: _Base("rdi", has_offset=False),
    6: _Base("r10", has_offset=False),
    7: _Base("r13", has_offset=False),
    9: _Base("rsp", Memory.AFTER),
    10: _Base("rbp", Memory.BEFORE),
}
_UNDEFINED = 0
_PREVIOUS_SP = {OrcVersion.V1: 1, OrcVersion.V2: 1, OrcVersion.V3: 1, OrcVersion.V4: 8}
_BP = 4
_STACK_POINTER = {OrcVersion.V1: 5, OrcVersion.V2: 5, OrcVersion.V3: 5, OrcVersion.V4: 3}
_OLD_KINDS = {0: RowKind.CALL, 1: RowKind.TRAP, 2: RowKind.TRAP_PARTIAL}
_NEW_KINDS = {0: RowKind.UNDEFINED, 1: RowKind.END, 2: RowKind.CALL, 3: RowKind.TRAP, 4: RowKind.TRAP_PARTIAL}


def detect_version(header: bytes | None, entries: bytes) -> OrcVersion:
    """The version of a table, by header and content.

    Raises BadImageError for an unknown header, or a content that contradicts it.
    """
    by_content = _version_by_content(entries)
    if not header:
        return by_content
    by_header = _HEADERS.get(header[:20])
    if by_header is None:
        raise BadImageError(
            f"the kernel's ORC unwind table has the unknown format {header[:20].hex()}; guestprof needs an update for this kernel"
        )
    if by_header is not by_content:
        raise BadImageError(f"the kernel's ORC header says version {by_header}, its entries look like version {by_content}")
    return by_header


def _version_by_content(entries: bytes) -> OrcVersion:
    """Most entries are CALL rows relative to the stack pointer; the numbers of both differ between the versions."""
    if len(entries) < _ENTRY.size or len(entries) % _ENTRY.size:
        raise BadImageError(f"the kernel's ORC unwind table has {len(entries)} bytes, which is no whole number of entries")
    flag_bytes = _count(entries[5::6])
    types: Counter[int] = Counter()
    for value, count in flag_bytes.items():
        types[value & 7] += count
    call_type = types.most_common(1)[0][0]
    registers: Counter[int] = Counter()
    for value, count in _count(entries[4::6]).items():
        registers[value & 15] += count
    stack_register = registers.most_common(1)[0][0]
    if not any(value & 0xF0 for value in flag_bytes):
        if call_type == 2 and stack_register == _STACK_POINTER[OrcVersion.V4]:
            return OrcVersion.V4
        if call_type == 2 and stack_register == _STACK_POINTER[OrcVersion.V3]:
            return OrcVersion.V3
        if call_type == 0 and stack_register == _STACK_POINTER[OrcVersion.V1]:
            return OrcVersion.V2 if any(value & 8 for value in flag_bytes) else OrcVersion.V1
    raise BadImageError("the kernel's ORC unwind table is in no known format; guestprof needs an update for this kernel")


def _count(values: bytes) -> dict[int, int]:
    """How often each value occurs; several times as fast as Counter for the few values of a large table."""
    return {value: values.count(value) for value in set(values)}


def lower(entry: bytes, version: OrcVersion) -> Row:
    """One 6-byte entry as a row."""
    sp_offset, bp_offset, flags = _ENTRY.unpack(entry)
    sp_number = flags & 15
    bp_number = flags >> 4 & 15
    if version <= OrcVersion.V2:
        kind = _OLD_KINDS.get(flags >> 8 & 3, RowKind.UNDEFINED)
        end_bit = 10 if version is OrcVersion.V1 else 11
        if sp_number == _UNDEFINED:
            kind = RowKind.END if flags >> end_bit & 1 else RowKind.UNDEFINED
    else:
        kind = _NEW_KINDS.get(flags >> 8 & 7, RowKind.UNDEFINED)
    if kind in (RowKind.END, RowKind.UNDEFINED):
        return Row(kind)
    base = (_BASES_V4 if version is OrcVersion.V4 else _BASES_V1).get(sp_number)
    if base is None:
        return Row(RowKind.UNDEFINED)
    memory = base.memory
    if version is OrcVersion.V1 and memory is Memory.AFTER and kind is not RowKind.CALL:
        # Before 87ccc826bf1c (5.12) SP_INDIRECT meant *(SP + offset), and only hints for saved registers used it.
        memory = Memory.BEFORE
    saved: tuple[Saved, ...] = ()
    kept: tuple[str, ...] = ()
    if bp_number == _PREVIOUS_SP[version]:
        saved = (Saved("rbp", None, bp_offset),)
    elif bp_number == _BP:
        saved = (Saved("rbp", "rbp", bp_offset),)
    elif bp_number == _UNDEFINED:
        kept = ("rbp",)
    return Row(kind, base.register, sp_offset if base.has_offset else 0, memory, saved, kept)


class OrcTable:
    """The kernel's sorted ORC table: instruction address -> row."""

    __slots__ = ("_address", "_entries", "_offsets", "_rows", "version")

    def __init__(self, offsets: array[int], address: int, entries: bytes, version: OrcVersion) -> None:
        """``offsets[i]`` is relative to ``address + 4 * i``; ``parse`` checks what comes from a guest."""
        self._offsets = offsets
        self._address = address
        self._entries = entries
        self._rows: dict[bytes, Row] = {}
        self.version = version

    @classmethod
    def parse(cls, ip_table: bytes, ip_table_address: int, entries: bytes, version: OrcVersion) -> OrcTable:
        """From ``.orc_unwind_ip`` (little endian s32, place-relative), its run-time address, and ``.orc_unwind``.

        Raises BadImageError where the two differ in length or the table is not sorted.
        """
        count = len(entries) // _ENTRY.size
        if not 0 < count <= _MAX_ENTRIES or len(ip_table) != 4 * count or len(entries) != _ENTRY.size * count:
            raise BadImageError(f"the kernel's ORC tables do not fit together: {len(ip_table)} and {len(entries)} bytes")
        offsets = array("i", ip_table)
        if sys.byteorder == "big":
            offsets.byteswap()
        table = cls(offsets, ip_table_address, entries, version)
        probes = [table._ip(index) for index in range(0, count, max(1, count // 4096))]
        if probes != sorted(probes):
            raise BadImageError("the kernel's ORC table is not sorted by address")
        return table

    def to_data(self) -> OrcData:
        """The table's bytes, which ``parse`` reads back."""
        offsets = self._offsets
        if sys.byteorder == "big":
            offsets = array("i", offsets)
            offsets.byteswap()
        return OrcData(int(self.version), self._address, offsets.tobytes(), self._entries)

    @classmethod
    def from_data(cls, data: OrcData) -> OrcTable:
        """What ``to_data`` gave. Raises BadImageError where it is damaged."""
        if data.version not in list(OrcVersion):
            raise BadImageError(f"ORC version {data.version} is unknown")
        return cls.parse(data.ip_table, data.address, data.entries, OrcVersion(data.version))

    def __len__(self) -> int:
        return len(self._offsets)

    def _ip(self, index: int) -> int:
        return self._address + 4 * index + self._offsets[index]

    def find_row(self, lookup_pc: int) -> Row | None:
        """The row for an address: of the last entry at or below it, None below the first."""
        index = bisect_right(range(len(self._offsets)), lookup_pc, key=self._ip) - 1
        if index < 0:
            return None
        entry = self._entries[6 * index : 6 * index + 6]
        row = self._rows.get(entry)
        if row is None:
            row = self._rows[entry] = lower(entry, self.version)
        return row
