"""Instructions of s390x, as literal bytes with what they are to a frame; and the rows of a program's functions."""

from __future__ import annotations

import pytest

from unwind.arch.s390x import S390X
from unwind.arch.s390x_code import decode
from unwind.code_rows import CodeRows
from unwind.instructions import Effect, Instruction
from unwind.rules import Row, RowKind, Saved

AT = 0x3FF_FE90_0000
ABI = S390X.user_abis[-1]


def nothing(size: int) -> Instruction:
    return Instruction(Effect.NOTHING, size)


def write(size: int, register: str) -> Instruction:
    return Instruction(Effect.WRITE, size, register)


def add(size: int, register: str, number: int, source: str) -> Instruction:
    return Instruction(Effect.ADD, size, register, number, source)


def several(effect: Effect, first: int, number: int, last: int, source: str = "") -> Instruction:
    return Instruction(effect, 6, f"r{first}", number, source, more=tuple(f"r{each}" for each in range(first + 1, last + 1)))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("07fe", Instruction(Effect.RETURN, 2)),  # br %r14
        ("07f1", Instruction(Effect.JUMP_REGISTER, 2, source="r1")),  # br %r1
        ("078e", nothing(2)),  # ber %r14
        ("0700", nothing(2)),  # nopr
        ("07f0", nothing(2)),  # br to no register
        ("0de1", Instruction(Effect.CALL, 2)),  # basr %r14,%r1
        ("0d11", write(2, "r1")),  # basr %r1,%r1
        ("0a00", nothing(2)),  # svc
        ("1be1", write(2, "r14")),  # sr %r14,%r1
        ("0000", Instruction(Effect.END, 2)),
        ("a7f40010", Instruction(Effect.JUMP, 4, number=AT + 0x20)),  # j
        ("a784fff8", Instruction(Effect.BRANCH, 4, number=AT - 0x10)),  # je
        ("a7040000", nothing(4)),  # jnop
        ("a7e50010", Instruction(Effect.CALL, 4)),  # bras %r14
        ("a7d50010", Instruction(Effect.JUMP, 4, number=AT + 0x20)),  # bras %r13
        ("a7170008", Instruction(Effect.BRANCH, 4, number=AT + 0x10)),  # brctg
        ("a7fbff60", add(4, "r15", -160, "r15")),  # aghi
        ("a7f90000", write(4, "r15")),  # lghi
        ("a7ff0000", nothing(4)),  # cghi
        ("84120008", Instruction(Effect.BRANCH, 4, number=AT + 0x10)),  # brxh
        ("47f01000", Instruction(Effect.END, 4)),  # b 0(%r1)
        ("41f0f0a0", add(4, "r15", 160, "r15")),  # la %r15,160(%r15)
        ("41ff00a0", add(4, "r15", 160, "r15")),  # with the register as an index
        ("41f1f0a0", write(4, "r15")),  # la %r15,160(%r1,%r15)
        ("58e01000", write(4, "r14")),  # l %r14,0(%r1)
        ("50e01000", nothing(4)),  # st
        ("b90400f1", add(4, "r15", 0, "r1")),  # lgr
        ("b90b00f1", write(4, "r15")),  # slgr
        ("b92000f1", nothing(4)),  # cgr
        ("b9e910ff", write(4, "r15")),  # sgrk %r15,%r15,%r1
        ("b2b20290", nothing(4)),  # lpswe
        ("e3f0ff60ff71", add(6, "r15", -160, "r15")),  # lay
        ("e3e0f0980024", Instruction(Effect.STORE, 6, "r14", 152)),  # stg %r14,152(%r15)
        ("e3e010880024", nothing(6)),  # stg %r14,136(%r1)
        ("e3f0f1180004", Instruction(Effect.LOAD, 6, "r15", 280)),  # lg %r15,280(%r15)
        ("e3e0b1180004", Instruction(Effect.LOAD, 6, "r14", 280, "r11")),  # lg %r14,280(%r11)
        ("e3f430000004", write(6, "r15")),  # lg %r15,0(%r4,%r3)
        ("e3e0f0980020", nothing(6)),  # cg
        ("eb6ff0480024", several(Effect.STORE, 6, 72, 15)),  # stmg %r6,%r15,72(%r15)
        ("eb6fb0480024", nothing(6)),  # stmg %r6,%r15,72(%r11)
        ("eb6ff0e80004", several(Effect.LOAD, 6, 232, 15)),  # lmg %r6,%r15,232(%r15)
        ("eb6fb0e80004", several(Effect.LOAD, 6, 232, 15, "r11")),
        ("ebf1f0e80004", Instruction(Effect.LOAD, 6, "r15", 232, more=("r0", "r1"))),  # lmg %r15,%r1,232(%r15)
        ("eb8f02000004", write(6, "r15")),  # lmg %r8,%r15,512
        ("c0f400000010", Instruction(Effect.JUMP, 6, number=AT + 0x20)),  # jg
        ("c084fffffff8", Instruction(Effect.BRANCH, 6, number=AT - 0x10)),  # jge
        ("c00400000000", nothing(6)),  # jgnop
        ("c0e500000010", Instruction(Effect.CALL, 6)),  # brasl %r14
        ("c00500000010", nothing(6)),  # brasl %r0
        ("c01000000010", write(6, "r1")),  # larl
        ("c2f8ffffff60", add(6, "r15", -160, "r15")),  # agfi
        ("c2f4000000a0", add(6, "r15", -160, "r15")),  # slgfi
        ("c2fa000000a0", add(6, "r15", 160, "r15")),  # algfi
        ("c2fc000000a0", nothing(6)),  # cgfi
        ("c4eb00000010", nothing(6)),  # stgrl
        ("c4e800000010", write(6, "r14")),  # lgrl
        ("ec120008e064", Instruction(Effect.BRANCH, 6, number=AT + 0x10)),  # cgrj
        ("ec18fff8007c", Instruction(Effect.BRANCH, 6, number=AT - 0x10)),  # cgij
        ("ecf1ff6000d9", add(6, "r15", -160, "r1")),  # aghik
        ("e5480000f0a0", nothing(6)),  # mvghi
        ("d707f098f098", nothing(6)),  # xc
        ("e7e000000021", write(6, "r14")),  # vlgv
        ("eb6ff0", None),
        ("", None),
    ],
)
def test_decode(code: str, expected: Instruction | None) -> None:
    assert decode(AT, bytes.fromhex(code)) == expected


FUNCTION = (
    "ebbff0580024",  # 0: stmg %r11,%r15,88(%r15)
    "e3f0ff50ff71",  # 6: lay %r15,-176(%r15)
    "b90400b2",  # 12: lgr %r11,%r2
    "c0e500000100",  # 16: brasl %r14
    "ec28000c007c",  # 22: cgije %r2,0,.+24
    "ebbff1080004",  # 28: lmg %r11,%r15,264(%r15)
    "07fe",  # 34: br %r14
    *["0700"] * 5,
    "ebbff1080004",  # 46: lmg
    "c0f400000006",  # 52: jg, to another function
    "0700",
    "0700",
    "0700",
    *("ebeff0700024", "a7fbff60", "ebeff1100004", "07fe"),  # 64: stmg %r14,%r15,112(%r15); aghi; lmg %r14,%r15,272(%r15); br
)


def row_at(offset: int, *, interrupted: bool, function: tuple[str, ...] = FUNCTION) -> Row | None:
    code = bytes.fromhex("".join(function)) + bytes(16)

    def read(address: int, size: int) -> bytes | None:
        start = address - AT
        return code[start : start + size] if 0 <= start < len(code) else None

    return CodeRows(read, ABI).find_row(AT + offset, interrupted=interrupted)


IN_LINK = Saved("pswa", "r14", 0, is_value=True)


@pytest.mark.parametrize(("offset", "interrupted"), [(12, True), (22, False), (28, True), (46, True)])
def test_registers_that_the_way_out_restores(offset: int, interrupted: bool) -> None:
    """The stack pointer is one of them."""
    row = row_at(offset, interrupted=interrupted)
    assert row is not None
    assert (row.kind, row.register, row.offset) == (RowKind.CALL, "r15", 0)
    assert row.return_address == Saved("pswa", None, 264 + 24)
    assert Saved("r15", None, 264 + 32) in row.saved
    assert Saved("r11", None, 264) in row.saved
    assert "r15" not in row.kept
    assert "r10" in row.kept


@pytest.mark.parametrize("offset", [34])
def test_behind_the_epilogue(offset: int) -> None:
    row = row_at(offset, interrupted=True)
    assert row is not None
    assert (row.offset, row.return_address, row.saved) == (0, IN_LINK, ())


def test_before_the_prologue() -> None:
    """The words that are restored are those that are saved: they hold what the registers do now."""
    row = row_at(0, interrupted=True)
    assert row is not None
    assert (row.register, row.offset, row.return_address) == ("r15", 0, IN_LINK)


def test_a_frame_that_is_taken_down_by_a_sum() -> None:
    row = row_at(4, interrupted=True, function=("a7fbff60", "b9040012", "a7fb00a0", "07fe"))
    assert row is not None
    assert (row.register, row.offset, row.return_address) == ("r15", 160, IN_LINK)
    assert "r15" not in row.kept


def test_a_frame_pointer_restores_all() -> None:
    """Functions that take memory of a variable size from the stack."""
    for offset in (0, 4):
        row = row_at(offset, interrupted=True, function=("b90b00f1", "ebbfb1080004", "07fe"))
        assert row is not None
        assert row.return_address == Saved("pswa", "r11", 264 + 24)
        assert Saved("r15", "r11", 264 + 32) in row.saved


def test_the_way_into_a_function_that_never_returns() -> None:
    row = row_at(22, interrupted=False, function=(*FUNCTION[:4], "b9040012", "a7f4fffd"))
    assert row is not None
    assert (row.register, row.offset, row.return_address) == ("r15", 176, Saved("pswa", None, 112))
    assert Saved("r11", None, 88) in row.saved
    assert not any(saved.register == "r15" for saved in row.saved)
