"""Rows out of x86 code: lengths as objdump sees them, real functions of a few instructions with the truth beside them."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.elf.file import open_elf
from guest.elf.function_starts import FunctionStarts
from guest.user.contents import BytesContents
from recording.model import UserEnd
from unwind.arch.i386 import I386
from unwind.arch.x86_code import decoder
from unwind.code_rows import CodeRows
from unwind.instructions import Effect, Instruction
from unwind.rules import Memory, Row, Saved
from unwind.user import Region, UserUnwinder

ABI = I386.user_abis[0]
TEXT = 0x804_9000
NAMES_64 = tuple("rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split())
DECODERS = {4: decoder(ABI.registers[:8], 4), 8: decoder(NAMES_64, 8)}


@pytest.mark.parametrize(
    ("code", "instruction"),
    [
        ("55", Instruction(Effect.PUSH, 1, "ebp")),
        ("5b", Instruction(Effect.POP, 1, "ebx")),
        ("6a01", Instruction(Effect.PUSH, 2)),
        ("ff71fc", Instruction(Effect.PUSH, 3)),  # pushl -4(%ecx)
        ("89e5", Instruction(Effect.ADD, 2, "ebp", 0, "esp")),
        ("83ec2c", Instruction(Effect.ADD, 3, "esp", -44, "esp")),
        ("81c400010000", Instruction(Effect.ADD, 6, "esp", 256, "esp")),
        ("83e4f0", Instruction(Effect.ALIGN, 3, "esp")),
        ("83fc00", Instruction(Effect.NOTHING, 3, "esp")),  # cmp $0, %esp
        ("8d65f4", Instruction(Effect.ADD, 3, "esp", -12, "ebp")),
        ("8d4c2404", Instruction(Effect.ADD, 4, "ecx", 4, "esp")),
        ("895c240c", Instruction(Effect.STORE, 4, "ebx", 12)),
        ("8b5dfc", Instruction(Effect.LOAD, 3, "ebx", -4, "ebp")),
        ("29c4", Instruction(Effect.WRITE, 2, "esp")),  # sub %eax, %esp
        ("c9", Instruction(Effect.LEAVE, 1)),
        ("c3", Instruction(Effect.RETURN, 1)),
        ("c20400", Instruction(Effect.RETURN, 3, number=4)),
        ("e8fbffffff", Instruction(Effect.CALL, 5, number=TEXT)),
        ("ffd0", Instruction(Effect.CALL, 2)),
        ("ff2485001080ab", Instruction(Effect.TABLE, 7)),
        ("ffa30c000000", Instruction(Effect.STUB, 6)),
        ("0f85f8ffffff", Instruction(Effect.BRANCH, 6, number=TEXT - 2)),
        ("ebfe", Instruction(Effect.JUMP, 2, number=TEXT)),
        ("f4", Instruction(Effect.END, 1)),
        ("0f0b", Instruction(Effect.END, 2)),
        ("c5f877", Instruction(Effect.NOTHING, 3)),  # vzeroupper
        ("8b", None),
    ],
)
def test_i386_instructions(code: str, instruction: Instruction | None) -> None:
    assert DECODERS[4](TEXT, bytes.fromhex(code)) == instruction


@pytest.mark.parametrize(("path", "word"), [("/lib64/ld-linux-x86-64.so.2", 8), ("/lib32/ld-linux.so.2", 4)])
def test_instructions_are_as_long_as_objdump_says(path: str, word: int) -> None:
    if shutil.which("objdump") is None or not Path(path).exists():
        warnings.warn(f"not compared with objdump: {path}", stacklevel=1)
        pytest.skip("no objdump, or no such file")
    text = subprocess.run(["objdump", "-dw", "-j.text", path], capture_output=True, text=True, check=True).stdout
    count = 0
    for address, digits, name in re.findall(r"^ *([0-9a-f]+):\t([0-9a-f ]+?) *\t(\S+)", text, re.MULTILINE):
        code = bytes.fromhex(digits)
        found = DECODERS[word](int(address, 16), code + bytes(16 - len(code)))
        assert name == "(bad)" or (found is not None and found.size == len(code)), (address, digits, name)
        count += 1
    assert count > 10_000


FUNCTION = bytes.fromhex("56 53 83ec14 89c3 e800000000 83c414 5b 5e c3")
"""push %esi; push %ebx; sub $20, %esp; mov %eax, %ebx; call; add $20, %esp; pop %ebx; pop %esi; ret"""


def rows_of(code: bytes, *starts: int) -> CodeRows:
    def read(address: int, size: int) -> bytes | None:
        start = address - TEXT
        return code[start : start + size] if 0 <= start <= len(code) - size else None

    return CodeRows(read, ABI, lambda _address: [TEXT + start for start in starts])


@pytest.mark.parametrize(
    ("offset", "cfa", "saved"),
    [
        (0, 4, {}),
        (1, 8, {"esi": -8}),
        (2, 12, {"esi": -8, "ebx": -12}),
        (5, 32, {"esi": -8, "ebx": -12}),
        (12, 32, {"esi": -8, "ebx": -12}),
        (15, 12, {"esi": -8, "ebx": -12}),
        (16, 8, {"esi": -8}),
        (17, 4, {}),
    ],
)
def test_each_instruction_of_a_function(offset: int, cfa: int, saved: dict[str, int]) -> None:
    """By the way in and by the way out, which agree where a register is still what it was."""
    inside = rows_of(FUNCTION + bytes(32), 0).find_rows(TEXT + offset, interrupted=True)
    outside = rows_of(FUNCTION + bytes(32)).find_rows(TEXT + offset, interrupted=True)
    for row in (inside[0], outside[0]):
        assert (row.register, row.offset, row.return_address) == ("esp", cfa, None)
    assert {each.register: each.offset for each in outside[0].saved} == saved
    assert [row.start for row in (inside[0], outside[0])] == [TEXT, None]


def test_frame_pointer() -> None:
    code = bytes.fromhex("55 89e5 53 29c4 e800000000 8b5dfc c9 c3") + bytes(32)
    row = rows_of(code).find_row(TEXT + 11, interrupted=False)
    assert row is not None
    assert (row.register, row.offset) == ("ebp", 8)
    assert {each.register: (each.base, each.offset) for each in row.saved} == {"ebx": (None, -12), "ebp": (None, -8)}


def test_a_function_that_aligns_its_stack() -> None:
    """``main``: the CFA is a word below the frame pointer, which nothing else tells."""
    code = bytes.fromhex("8d4c2404 83e4f0 ff71fc 55 89e5 51 83ec14 e800000000 f4") + bytes(32)
    row = rows_of(code, 0).find_row(TEXT + 22, interrupted=False)
    assert row is not None
    assert (row.register, row.offset, row.memory) == ("ebp", -4, Memory.BEFORE)
    assert row.saved == (Saved("ebp", "ebp", 0),)


class Program:
    """Code at its link-time address."""

    def __init__(self, rows: CodeRows) -> None:
        self._rows = rows

    def find_code_rows(self, address: int, *, interrupted: bool) -> Sequence[Row]:
        return self._rows.find_rows(address, interrupted=interrupted)

    def find_call(self, address: int) -> Instruction | None:
        return self._rows.find_call(address)

    def find_region(self, address: int) -> Region | None:
        return Region(TEXT, TEXT + 0x1000, 0, 0, None, TEXT + 0x80, self) if TEXT <= address < TEXT + 0x1000 else None


def test_return_addresses_tell_which_row_holds() -> None:
    """Behind a call that never returns the code goes on with another function, whose end is not this one's."""
    noreturn = bytes.fromhex("83ec1c e800000000")
    code = noreturn + FUNCTION
    code += bytes(0x80 - len(code)) + bytes.fromhex("e8") + struct.pack("<i", -0x85) + bytes(64)
    program = Program(rows_of(code, 0))
    stack = {0x10: 0xBAD, 0x10 + 28: TEXT + 0x85}

    def read(address: int, size: int) -> bytes | None:
        return stack.get(address - 0x7000_0000, 0x1234).to_bytes(size, "little")

    walk = UserUnwinder(I386).unwind({"eip": TEXT + 8, "esp": 0x7000_0010, "ebp": 0}, read, program)
    assert [frame.pc for frame in walk.frames] == [TEXT + 8, TEXT + 0x85]
    assert walk.end is UserEnd.THREAD_START
    stack[0x10 + 28] = 0xBAD
    walk = UserUnwinder(I386).unwind({"eip": TEXT + 8, "esp": 0x7000_0010, "ebp": 1}, read, program)
    assert [frame.pc for frame in walk.frames] == [TEXT + 8]
    assert walk.end is UserEnd.NO_UNWIND_INFO


def test_where_functions_begin() -> None:
    """In a file without symbols: what is called, what is pointed to."""
    code = FUNCTION + bytes.fromhex("90 e8") + struct.pack("<i", -len(FUNCTION) - 6) + bytes(9)
    header = struct.pack("<16sHHIIIIIHHHHHH", b"\x7fELF\1\1\1", 2, 3, 1, TEXT, 52, 0, 0, 52, 32, 2, 40, 0, 0)
    place = 0x1000
    segments = struct.pack("<8I", 1, place, TEXT, TEXT, len(code), len(code), 5, 0x1000)
    segments += struct.pack("<8I", 1, place + 0x100, TEXT + 0x2000, 0, 8, 8, 6, 0x1000)
    data = bytearray(place + 0x108)
    data[: len(header) + len(segments)] = header + segments
    data[place : place + len(code)] = code
    data[place + 0x104 : place + 0x108] = (TEXT + 7).to_bytes(4, "little")
    file = open_elf(BytesContents(bytes(data)))
    assert file is not None
    assert FunctionStarts(file).before(TEXT + 10) == [TEXT, TEXT + 7]
    assert FunctionStarts(file).before(TEXT + 6) == [TEXT]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=120), st.integers(0, 60), st.booleans())
def test_any_code_has_rows_or_none(code: bytes, offset: int, interrupted: bool) -> None:
    for row in rows_of(code, 0, 5).find_rows(TEXT + offset, interrupted=interrupted):
        assert row.register in ("esp", "ebp") or row.memory is not Memory.NONE or row.register in ABI.registers
