"""A kernel of a few functions for unwinder tests: code bytes, symbols and rows at literal addresses, and stacks of named words."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from recording.symbols import SymbolTable
from unwind.arch.x86_64 import X86_64
from unwind.capture import Capture
from unwind.kernel import KernelUnwinder
from unwind.rules import Row, RowKind, Saved

TEXT = 0xFFFF_FFFF_8100_0000
TEXT_SIZE = 0x4000
STACK = 0xFFFF_C900_0001_0000
"""Lowest address of a task's 16 KiB stack."""
STACK_TOP = STACK + 0x4000
CALL = b"\xe8\x11\x22\x33\x44"

AT_CALL = Row(RowKind.CALL, "rsp", 8, kept=("rbp",))
"""The row of a function's first instruction: nothing pushed yet."""


def pushed(count: int) -> Row:
    """The row behind ``count`` pushes, none of them of rbp."""
    return Row(RowKind.CALL, "rsp", 8 + 8 * count, kept=("rbp",))


SAVED_RBP = Row(RowKind.CALL, "rsp", 16, saved=(Saved("rbp", None, -16),))
"""The row behind ``push %rbp``."""


@dataclass
class TinyKernel:
    """Functions of 0x100 bytes each, in the order in which they are added."""

    names: list[str] = field(default_factory=list)
    rows: dict[int, Row] = field(default_factory=dict)
    code: bytearray = field(default_factory=lambda: bytearray(b"\x90" * TEXT_SIZE))
    markers: list[tuple[int, str, str]] = field(default_factory=list)

    def function(self, name: str, row: Row | None) -> int:
        """Add a function whose every address has one row. Returns its address."""
        address = TEXT + 0x100 * len(self.names)
        self.names.append(name)
        if row is not None:
            self.rows[address] = row
        return address

    def call_in(self, address: int, offset: int = 0x20) -> int:
        """Put a call instruction into a function. Returns its return address."""
        end = address + offset
        self.code[end - len(CALL) - TEXT : end - TEXT] = CALL
        return end

    def contains(self, address: int) -> bool:
        """Text reader."""
        return TEXT <= address < TEXT + TEXT_SIZE

    def read(self, address: int, size: int) -> bytes | None:
        """Text reader."""
        return bytes(self.code[address - TEXT : address - TEXT + size]) if self.contains(address) else None

    def find_row(self, lookup_pc: int) -> Row | None:
        """Row source: exact addresses first, else the function's row."""
        if lookup_pc in self.rows:
            return self.rows[lookup_pc]
        return self.rows.get(lookup_pc & ~0xFF)

    def symbols(self) -> SymbolTable:
        """All functions, and the markers."""
        functions = [(TEXT + 0x100 * index, "t", name) for index, name in enumerate(self.names)]
        return SymbolTable.from_symbols([*self.markers, *functions])

    def unwinder(self) -> KernelUnwinder:
        """The unwinder under test on this kernel."""
        return KernelUnwinder(X86_64, self.symbols(), self, self)


def words(*values: int) -> bytes:
    """Stack words, lowest address first."""
    return struct.pack(f"<{len(values)}Q", *values)


def pt_regs(**registers: int) -> bytes:
    """``struct pt_regs`` of x86-64 with the named registers set, the others 0."""
    layout = X86_64.kernel_code.trap
    data = bytearray(layout.size)
    for name, value in registers.items():
        struct.pack_into("<Q", data, layout.full[name], value)
    return bytes(data)


def user_regs() -> bytes:
    """``pt_regs`` as a system call saves them."""
    return pt_regs(rip=0x7F00_0000_1000, cs=0x33, eflags=0x246, rsp=0x7FFD_0000_0000, ss=0x2B, rdi=3)


def capture(pc: int, stack: bytes, *, top: int = STACK_TOP, **registers: int) -> Capture:
    """A vCPU in kernel mode whose stack holds ``stack`` up to ``top``."""
    sp = top - len(stack)
    return Capture(0, {"rip": pc, "rsp": sp, "rbp": 0, "cs": 0x10, **registers}, ((sp, stack),))
