"""Walks of user stacks: literal stacks, whatever a guest may hold, and gdb's word on real processes of the host."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recording.model import Frame, Space, UserEnd
from tests.builders.host_process import HostProcess
from tests.builders.unwind_tables import TableOfFile
from unwind.arch.arm64 import ARM64
from unwind.arch.ppc64el import PPC64EL
from unwind.arch.x86_64 import X86_64
from unwind.frame_table import Unread
from unwind.rules import Memory, Row, RowKind, Saved
from unwind.user import Region, UserUnwinder, UserWalk

BIAS = 0x7F00_0000_0000
LEAF, CALLER, START, TRAMPOLINE, NO_ROWS = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
ANONYMOUS = 0x6F00_0000_0000
SP = 0x7FFC_0000_1000
FAR = 0x7FFF_0000_0000

AT_CALL = Row(RowKind.CALL, "rsp", 8, kept=("rbx", "rbp"))
PUSHED = Row(RowKind.CALL, "rsp", 16, saved=(Saved("rbp", None, -16),), kept=("rbx",))
SIGNAL = Row(
    RowKind.CALL,
    "rsp",
    160,
    Memory.BEFORE,
    saved=(Saved("rsp", "rsp", 160), Saved("rbp", "rsp", 120)),
    return_address=Saved("rip", "rsp", 168),
    is_signal=True,
)
END = Row(RowKind.END)


@dataclass
class Process:
    """A file with rows at BIAS, code without any at ANONYMOUS, and a stack of words from SP on."""

    rows: dict[int, Row | Unread] = field(
        default_factory=lambda: {
            **dict.fromkeys(range(LEAF, LEAF + 0x100), AT_CALL),
            **dict.fromkeys(range(CALLER, CALLER + 0x100), PUSHED),
            **dict.fromkeys(range(START, START + 0x100), END),
            **dict.fromkeys(range(TRAMPOLINE - 1, TRAMPOLINE + 9), SIGNAL),
        }
    )
    starts: dict[int, int] = field(default_factory=dict)
    stack: tuple[int, ...] = ()
    base: int = SP
    word: int = 8

    def find_row(self, address: int) -> Row | Unread | None:
        return self.rows.get(address)

    def find_start(self, address: int) -> int | None:
        return self.starts.get(address)

    def find_region(self, address: int) -> Region | None:
        if BIAS <= address < BIAS + 0x10000:
            return Region(BIAS, BIAS + 0x10000, BIAS, 7, self)
        return Region(ANONYMOUS, ANONYMOUS + 0x1000) if ANONYMOUS <= address < ANONYMOUS + 0x1000 else None

    def read(self, address: int, size: int) -> bytes | None:
        data = b"".join(value.to_bytes(self.word, "little") for value in self.stack)
        offset = address - self.base
        return data[offset : offset + size] if 0 <= offset <= len(data) - size else None

    def walk(self, pc: int, *, stack_top: int | None = FAR, **registers: int) -> UserWalk:
        known = {"rip": pc, "rsp": SP, "rbp": 0x1234, "cs": 0x33, **registers}
        return UserUnwinder(X86_64).unwind(known, self.read, self, stack_top)


def frame(pc: int, *, guess: bool = False) -> Frame:
    """A return address in the file."""
    return Frame(pc, pc - 1, Space.USER, guess, 7)


def anonymous(pc: int, *, guess: bool = False) -> Frame:
    return Frame(pc, pc - 1, Space.USER, guess)


def interrupted(pc: int) -> Frame:
    return Frame(pc, pc, Space.USER, False, 7)


def test_rows_lead_to_the_start() -> None:
    process = Process(stack=(BIAS + CALLER + 0x20, 0x1111, BIAS + START + 0x30))
    assert process.walk(BIAS + LEAF) == UserWalk(
        (interrupted(LEAF), frame(CALLER + 0x20), frame(START + 0x30)), UserEnd.THREAD_START
    )


def test_frames_tell_where_their_functions_begin() -> None:
    process = Process(stack=(BIAS + CALLER + 0x20, 0x1111, BIAS + START + 0x30), starts={LEAF: LEAF, CALLER + 0x1F: CALLER})
    starts = [frame.start for frame in process.walk(BIAS + LEAF).frames]
    assert starts == [LEAF, CALLER, None]


def test_code_of_no_file_keeps_its_addresses() -> None:
    process = Process(stack=(BIAS + START + 1,))
    walk = process.walk(ANONYMOUS + 8, rbp=SP - 8)
    assert walk == UserWalk((Frame(ANONYMOUS + 8, ANONYMOUS + 8, Space.USER),), UserEnd.NO_UNWIND_INFO)


def test_pc_that_is_not_mapped_is_kept() -> None:
    assert Process().walk(0) == UserWalk((Frame(0, 0, Space.USER),), UserEnd.NOT_MAPPED)


def test_registers_that_are_not_known() -> None:
    assert UserUnwinder(X86_64).unwind({"rip": 1}, Process().read, Process()) == UserWalk((), UserEnd.NO_REGISTERS)


def test_return_address_outside_of_code() -> None:
    assert Process(stack=(0x1234,)).walk(BIAS + LEAF) == UserWalk((interrupted(LEAF),), UserEnd.NOT_MAPPED)


def test_return_address_of_zero_is_a_start_after_rows_alone() -> None:
    assert Process(stack=(0,)).walk(BIAS + LEAF) == UserWalk((interrupted(LEAF),), UserEnd.THREAD_START)
    guessed = Process(stack=(0x77, BIAS + LEAF + 5, 0)).walk(ANONYMOUS, rbp=SP)
    assert guessed == UserWalk((Frame(ANONYMOUS, ANONYMOUS, Space.USER), frame(LEAF + 5, guess=True)), UserEnd.NOT_MAPPED)


def test_return_address_among_the_arguments_of_the_program() -> None:
    """``_start`` without a row that says so: the kernel put argc where a return address would be."""
    process = Process(stack=(BIAS + LEAF + 5, 1, 2))
    walk = process.walk(BIAS + LEAF, stack_top=SP + 8)
    assert walk == UserWalk((interrupted(LEAF), frame(LEAF + 5)), UserEnd.THREAD_START)
    assert process.walk(BIAS + LEAF, stack_top=SP + 16).end is UserEnd.NOT_MAPPED


def test_entry_code_without_rows() -> None:
    """``_dl_start_user`` of ld.so: at the arguments, or a few words below them with a frame pointer of 0."""
    process = Process(stack=(BIAS + NO_ROWS + 5, 1, 2))
    expected = (interrupted(LEAF), frame(NO_ROWS + 5))
    assert process.walk(BIAS + LEAF, stack_top=SP + 8) == UserWalk(expected, UserEnd.THREAD_START)
    assert process.walk(BIAS + LEAF, stack_top=SP + 0x40, rbp=0) == UserWalk(expected, UserEnd.THREAD_START)
    assert process.walk(BIAS + LEAF, stack_top=SP + 0x400, rbp=0) == UserWalk(expected, UserEnd.NO_UNWIND_INFO)
    assert process.walk(BIAS + LEAF, stack_top=SP + 0x40, rbp=3) == UserWalk(expected, UserEnd.NO_UNWIND_INFO)


def test_return_to_the_beginning_of_a_function() -> None:
    """makecontext(): nobody called the function that its thread returns to."""
    walk = Process(stack=(BIAS + CALLER, 2, 3)).walk(BIAS + LEAF)
    assert walk == UserWalk((interrupted(LEAF), interrupted(CALLER)), UserEnd.THREAD_START)


def test_stack_that_was_not_copied() -> None:
    process = Process(stack=(BIAS + CALLER + 0x20, 0x1111))
    assert process.walk(BIAS + LEAF) == UserWalk((interrupted(LEAF), frame(CALLER + 0x20)), UserEnd.UNREADABLE_MEMORY)


def test_table_that_is_not_known_yet() -> None:
    process = Process(stack=(BIAS + CALLER + 0x20, 0x1111, BIAS + START + 0x30))
    process.rows[CALLER + 0x1F] = Unread.UNREAD
    expected = (interrupted(LEAF), frame(CALLER + 0x20))
    assert process.walk(BIAS + LEAF) == UserWalk(expected, UserEnd.NO_FILE_CONTENTS, frozenset({7}))


def test_row_that_cannot_be_said() -> None:
    process = Process(rows={LEAF: Row(RowKind.UNDEFINED), CALLER: Row(RowKind.CALL, "r10", 8)})
    assert process.walk(BIAS + LEAF).end is UserEnd.NO_UNWIND_INFO
    assert process.walk(BIAS + CALLER).end is UserEnd.NO_UNWIND_INFO


def test_row_that_does_not_advance() -> None:
    process = Process(rows={LEAF: Row(RowKind.CALL, "rbx", 0)}, stack=(BIAS + LEAF + 5, 1))
    assert process.walk(BIAS + LEAF, rbx=SP) == UserWalk((interrupted(LEAF),), UserEnd.UNREADABLE_MEMORY)
    process = Process(rows={LEAF: Row(RowKind.CALL, "rbx", 0, return_address=Saved("rip", "rsp", 0))}, stack=(BIAS + LEAF + 5, 1))
    assert process.walk(BIAS + LEAF, rbx=SP).end is UserEnd.DID_NOT_ADVANCE


def test_return_address_in_a_register_leaves_the_stack_as_it_is() -> None:
    """As in glibc's vfork, which pops it in front of its system call."""
    in_register = Saved("rip", "rdi", 0, is_value=True)
    process = Process(rows={LEAF: Row(RowKind.CALL, "rsp", 0, return_address=in_register), CALLER: Row(RowKind.END)}, stack=(0, 0))
    walk = process.walk(BIAS + LEAF, rdi=BIAS + CALLER + 1)
    assert walk == UserWalk((interrupted(LEAF), frame(CALLER + 1)), UserEnd.THREAD_START)


def test_depth_limit() -> None:
    walk = Process(stack=(BIAS + LEAF + 5,) * 600).walk(BIAS + LEAF)
    assert walk.end is UserEnd.DEPTH_LIMIT
    assert len(walk.frames) == 512


def test_signal_on_a_stack_of_its_own() -> None:
    """The interrupted frame's pc is no return address, and its stack may lie below."""
    stack = [0] * 24
    stack[0] = BIAS + TRAMPOLINE  # pushed by the kernel: the trampoline's first byte
    stack[1 + 15], stack[1 + 20], stack[1 + 21] = 0x77, SP - 0x100, BIAS + CALLER
    walk = Process(stack=tuple(stack)).walk(BIAS + LEAF)
    assert walk == UserWalk((interrupted(LEAF), frame(TRAMPOLINE), interrupted(CALLER)), UserEnd.UNREADABLE_MEMORY)
    stack[1 + 20] = SP + 8 * 22
    walk = Process(stack=(*stack[:23], BIAS + START + 9)).walk(BIAS + LEAF)
    assert walk.frames[2:] == (interrupted(CALLER), frame(START + 9))
    assert walk.end is UserEnd.THREAD_START


def test_signal_in_code_that_is_not_mapped() -> None:
    stack = [0] * 24
    stack[0], stack[1 + 20], stack[1 + 21] = BIAS + TRAMPOLINE, SP, 0x10
    walk = Process(stack=tuple(stack)).walk(BIAS + LEAF)
    assert walk == UserWalk((interrupted(LEAF), frame(TRAMPOLINE), Frame(0x10, 0x10, Space.USER)), UserEnd.NOT_MAPPED)


def test_frame_pointers_where_there_are_no_rows() -> None:
    """As in a Go program, down to ``runtime.goexit``, whose frame pointer is 0."""
    process = Process(stack=(5, SP + 32, ANONYMOUS + 0x20, 6, 0, ANONYMOUS + 0x40, 7, 8))
    assert process.walk(ANONYMOUS + 0x10, rbp=SP + 8) == UserWalk(
        (
            Frame(ANONYMOUS + 0x10, ANONYMOUS + 0x10, Space.USER),
            anonymous(ANONYMOUS + 0x20, guess=True),
            anonymous(ANONYMOUS + 0x40, guess=True),
        ),
        UserEnd.THREAD_START,
    )


def test_rows_again_behind_a_frame_pointer() -> None:
    process = Process(stack=(SP + 0x100, BIAS + CALLER + 4, 0x99, BIAS + START + 9))
    assert process.walk(ANONYMOUS, rbp=SP).frames[1:] == (frame(CALLER + 4, guess=True), frame(START + 9))


@pytest.mark.parametrize(
    ("fp", "stack", "end"),
    [
        (SP + 4, (SP + 64, ANONYMOUS + 8, 0), UserEnd.NO_UNWIND_INFO),  # not aligned
        (SP - 8, (SP + 64, ANONYMOUS + 8, 0), UserEnd.NO_UNWIND_INFO),  # below the stack pointer
        (FAR, (SP + 64, ANONYMOUS + 8, 0), UserEnd.NO_UNWIND_INFO),  # above the program's arguments
        (SP, (SP + 64, 0x1234, 0), UserEnd.NO_UNWIND_INFO),  # leads to no code
        (SP + 0x1000, (0, 0), UserEnd.UNREADABLE_MEMORY),  # not copied
        (SP + 0x100_0000, (0, 0), UserEnd.NO_UNWIND_INFO),  # a pointer to something else
        (0, (0, 0), UserEnd.NO_UNWIND_INFO),  # some value of the program's
    ],
)
def test_frame_pointer_that_is_none(fp: int, stack: tuple[int, ...], end: UserEnd) -> None:
    walk = Process(stack=stack).walk(ANONYMOUS, rbp=fp)
    assert walk == UserWalk((Frame(ANONYMOUS, ANONYMOUS, Space.USER),), end)


def test_32_bit_program() -> None:
    """Registers are cut to 32 bits (in 64-bit mode the processor may leave anything above), words have 4 bytes."""
    rows: dict[int, Row | Unread] = {LEAF: Row(RowKind.CALL, "rsp", 4, kept=("rbp",)), NO_ROWS - 1: END}

    @dataclass
    class Narrow(Process):
        def find_region(self, address: int) -> Region | None:
            return Region(0x5655_0000, 0x5656_0000, 0x5655_0000, 3, self) if 0x5655_0000 <= address < 0x5656_0000 else None

    process = Narrow(rows=rows, stack=(0x5655_0000 + NO_ROWS,), base=0xFFFF_0000, word=4)
    walk = process.walk(0xABCD_5655_0000 + LEAF & 0xFFFF_FFFF | 1 << 40, rsp=1 << 40 | 0xFFFF_0000, cs=0x23)
    assert walk == UserWalk(
        (Frame(LEAF, LEAF, Space.USER, False, 3), Frame(NO_ROWS, NO_ROWS - 1, Space.USER, False, 3)), UserEnd.THREAD_START
    )


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.sampled_from([0, 1, SP, SP + 8, SP + 64, BIAS + LEAF + 5, BIAS + CALLER, BIAS + TRAMPOLINE, ANONYMOUS + 9, 2**64 - 1]),
        max_size=64,
    ),
    st.sampled_from([0, BIAS + LEAF, BIAS + CALLER + 5, BIAS + TRAMPOLINE, ANONYMOUS, 2**64 - 1]),
    st.sampled_from([0, SP, SP + 16, 2**64 - 8, 2**64 - 1]),
    st.sampled_from([None, SP + 64, 0, 2**64 - 1]),
    st.sampled_from([0x23, 0x33]),
)
def test_no_stack_raises(stack: list[int], pc: int, fp: int, stack_top: int | None, cs: int) -> None:
    walk = Process(stack=tuple(stack)).walk(pc, stack_top=stack_top, rbp=fp, cs=cs)
    assert 1 <= len(walk.frames) <= 512


PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="module")
def tables() -> dict[str, TableOfFile]:
    return {}


@contextmanager
def stopped(source: str, directory: Path, options: str, tables: dict[str, TableOfFile]) -> Iterator[HostProcess]:
    """A program of ``programs/``, built and run until it waits."""
    compiler = "g++" if source.endswith(".cc") else "gcc"
    if shutil.which(compiler) is None or shutil.which("gdb") is None:
        warnings.warn(f"user stacks are not compared with gdb: no {compiler} or no gdb", stacklevel=2)
        pytest.skip(f"no {compiler} or no gdb")
    program = directory / source.partition(".")[0]
    built = subprocess.run(
        [compiler, *options.split(), "-pthread", "-o", program, PROGRAMS / source], capture_output=True, text=True, check=False
    )
    if built.returncode:
        warnings.warn(f"cannot build {source} with {options}: {built.stderr}", stacklevel=2)
        pytest.skip(f"this machine's compiler cannot build with {options}")
    process = subprocess.Popen([program], stdout=subprocess.PIPE, cwd=directory)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        host = HostProcess(process.pid, tables)
        host.stop()
        yield host
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("deep.c", "-O2 -fomit-frame-pointer"),
        ("deep.c", "-O2 -static"),
        ("deep.c", "-O1 -m32"),
        ("exceptions.cc", "-O2"),
    ],
)
def test_stacks_of_real_processes_are_those_of_gdb(
    tmp_path: Path, source: str, options: str, tables: dict[str, TableOfFile]
) -> None:
    with stopped(source, tmp_path, options, tables) as host:
        for thread in host.threads():
            walk = host.walk(thread.registers)
            assert host.pcs(walk) == thread.pcs
            assert walk.end is UserEnd.THREAD_START
            assert not any(one.guess for one in walk.frames)
            assert len(walk.frames) >= 6


@pytest.mark.parametrize("options", ["-O2", "-O2 -static"])
def test_signals_threads_and_contexts(tmp_path: Path, options: str, tables: dict[str, TableOfFile]) -> None:
    """Two signals, one on a stack of its own, a thread, and a context, behind whose start gdb takes data for a frame."""
    with stopped("signals.c", tmp_path, options, tables) as host:
        lengths = []
        for thread in host.threads():
            walk = host.walk(thread.registers)
            length = len(walk.frames)
            lengths.append(length)
            assert host.pcs(walk) == thread.pcs[:length]
            assert walk.end is UserEnd.THREAD_START
            assert length == len(thread.pcs) or (length == 3 and host.find_region(thread.pcs[length]) is None)
        assert min(lengths) == 3
        assert max(lengths) >= 10


def test_stack_of_a_program_that_is_being_loaded(tmp_path: Path, tables: dict[str, TableOfFile]) -> None:
    """A library's constructor runs on ld.so's stack, which begins in code without rows; gdb takes argc for a return address."""
    library = tmp_path / "library.so"
    if shutil.which("gcc") is None:
        warnings.warn("no gcc: the stack of a program that is being loaded is not looked at", stacklevel=1)
        pytest.skip("no gcc")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, PROGRAMS / "constructor.c"], check=True)
    with stopped("deep.c", tmp_path, f"-O2 -Wl,--no-as-needed {library}", tables) as host:
        (thread,) = host.threads()
        walk = host.walk(thread.registers)
        assert host.pcs(walk) == thread.pcs[: len(walk.frames)]
        assert walk.end is UserEnd.THREAD_START
        assert thread.pcs[len(walk.frames) :][:1] in ([], [1])


ARM_SP, ARM_FAR = 0xFFFF_F000_1000, 0xFFFF_FFFF_F000
IN_LINK = Saved("pc", "x30", 0, is_value=True)
ARM_LEAF = Row(RowKind.CALL, "sp", 0, kept=("x19", "x29"), return_address=IN_LINK)
ARM_CALLER = Row(RowKind.CALL, "sp", 32, saved=(Saved("x29", None, -32),), kept=("x19",), return_address=Saved("pc", None, -24))
ARM_BY_FRAME = Row(RowKind.CALL, "x29", 32, saved=(Saved("x29", None, -32),), kept=("x19",), return_address=Saved("pc", None, -24))


@dataclass
class ArmProcess(Process):
    base: int = ARM_SP
    rows: dict[int, Row | Unread] = field(
        default_factory=lambda: {
            **dict.fromkeys(range(LEAF, LEAF + 0x100), ARM_LEAF),
            **dict.fromkeys(range(CALLER, CALLER + 0x100), ARM_CALLER),
            **dict.fromkeys(range(START, START + 0x100), END),
            **dict.fromkeys(range(TRAMPOLINE, TRAMPOLINE + 0x100), ARM_BY_FRAME),
        }
    )

    def walk(self, pc: int, *, stack_top: int | None = ARM_FAR, **registers: int) -> UserWalk:
        known = {"pc": pc, "sp": ARM_SP, "x29": ARM_SP, "x30": 0x1234, "cpsr": 0, **registers}
        return UserUnwinder(ARM64).unwind(known, self.read, self, stack_top)


def test_arm64_leaf_returns_to_the_link_register_and_only_a_leaf() -> None:
    process = ArmProcess(stack=(ARM_SP + 32, BIAS + START + 0x30, 0, 0))
    walk = process.walk(BIAS + LEAF, x30=BIAS + CALLER + 0x20)
    assert walk == UserWalk((interrupted(LEAF), frame(CALLER + 0x20), frame(START + 0x30)), UserEnd.THREAD_START)
    # A caller has made a call, which is in the link register now: what it says of it is not true.
    again = ArmProcess(stack=(ARM_SP + 32, BIAS + LEAF + 0x30, 0, 0)).walk(BIAS + CALLER)
    assert again == UserWalk((interrupted(CALLER), frame(LEAF + 0x30)), UserEnd.NO_UNWIND_INFO)


def test_arm64_signatures_of_return_addresses_are_taken_away() -> None:
    process = ArmProcess(stack=(ARM_SP + 32, 0x0055_0000_0000_0000 | BIAS + START + 0x30, 0, 0))
    walk = process.walk(BIAS + LEAF, x30=0x002A_0000_0000_0000 | BIAS + CALLER + 0x20)
    assert walk == UserWalk((interrupted(LEAF), frame(CALLER + 0x20), frame(START + 0x30)), UserEnd.THREAD_START)


def test_arm64_rows_behind_a_frame_record_need_no_stack_pointer_or_are_not_used() -> None:
    """A record lies at its frame's lower end, so that the caller's stack pointer is not known."""
    by_frame = ArmProcess(stack=(ARM_SP + 32, BIAS + TRAMPOLINE + 8, 0, 0, ARM_SP + 64, BIAS + START + 4, 0, 0))
    expected = (Frame(ANONYMOUS, ANONYMOUS, Space.USER), frame(TRAMPOLINE + 8, guess=True), frame(START + 4))
    assert by_frame.walk(ANONYMOUS) == UserWalk(expected, UserEnd.THREAD_START)
    by_sp = ArmProcess(stack=(ARM_SP + 32, BIAS + CALLER + 8, 0, 0, ARM_SP + 64, BIAS + START + 4, 0, 0))
    expected = (Frame(ANONYMOUS, ANONYMOUS, Space.USER), frame(CALLER + 8, guess=True), frame(START + 4, guess=True))
    assert by_sp.walk(ANONYMOUS) == UserWalk(expected, UserEnd.THREAD_START)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([BIAS + CALLER + 8, ARM_SP, ARM_SP + 16, 0])), max_size=64))
def test_arm64_damaged_stacks_end_with_a_reason(stack: list[int]) -> None:
    process = ArmProcess(stack=tuple(stack))
    for pc in (BIAS + LEAF, BIAS + CALLER, BIAS + TRAMPOLINE, ANONYMOUS):
        assert process.walk(pc, x30=BIAS + CALLER + 4).end in UserEnd


PPC_SP, PPC_FAR = 0x7FFF_F000_1000, 0x7FFF_FFFF_F000
SAVED_ABOVE = Saved("pc", None, 16)


@dataclass
class PpcProcess(Process):
    """Rows for LEAF and CALLER only; each function's frame has 32 bytes."""

    base: int = PPC_SP
    rows: dict[int, Row | Unread] = field(
        default_factory=lambda: {
            **dict.fromkeys(range(LEAF, LEAF + 0x100), Row(RowKind.CALL, "r1", 0, return_address=SAVED_ABOVE)),
            **dict.fromkeys(range(CALLER, CALLER + 0x100), Row(RowKind.CALL, "r1", 32, return_address=SAVED_ABOVE)),
        }
    )

    def walk(self, pc: int, *, stack_top: int | None = PPC_FAR, **registers: int) -> UserWalk:
        known = {"pc": pc, "r1": PPC_SP, "lr": 0x1234, **registers}
        return UserUnwinder(PPC64EL).unwind(known, self.read, self, stack_top)


def chain(*frames: tuple[int, int]) -> tuple[int, ...]:
    """Frames of (return address of the function that this one has called, bytes to the next frame or 0 for none)."""
    words: list[int] = []
    for index, (saved, size) in enumerate(frames):
        words += [PPC_SP + 32 * index + size if size else 0, 0, saved, 0]
    return tuple(words)


def test_ppc64el_function_that_has_saved_its_return_address_and_made_no_frame() -> None:
    walk = PpcProcess(stack=chain((BIAS + CALLER + 8, 32), (0, 0))).walk(BIAS + LEAF)
    assert walk == UserWalk((interrupted(LEAF), frame(CALLER + 8)), UserEnd.THREAD_START)
    again = PpcProcess(stack=chain((BIAS + CALLER + 8, 32), (BIAS + LEAF + 8, 32), (BIAS + LEAF + 4, 0))).walk(BIAS + CALLER)
    assert again.end is UserEnd.DID_NOT_ADVANCE


def test_ppc64el_back_chain_where_there_are_no_rows() -> None:
    """Only the innermost function may be one without a frame, so that the next is a guess."""
    stack = chain((0, 32), (BIAS + TRAMPOLINE + 8, 32), (BIAS + TRAMPOLINE + 0x20, 32), (BIAS + CALLER + 4, 32), (0, 0))
    walk = PpcProcess(stack=stack).walk(BIAS + TRAMPOLINE)
    expected = (interrupted(TRAMPOLINE), frame(TRAMPOLINE + 8, guess=True), frame(TRAMPOLINE + 0x20), frame(CALLER + 4))
    assert walk == UserWalk(expected, UserEnd.THREAD_START)


@pytest.mark.parametrize(
    ("stack", "end"),
    [
        ((0,), UserEnd.THREAD_START),
        ((PPC_SP + 32, 0, 0, 0, 0, 0, 0), UserEnd.THREAD_START),  # a return address of 0
        ((PPC_SP + 32, 0, 0, 0, 0, 0, 0x1234), UserEnd.NOT_MAPPED),
        ((PPC_SP + 32, 0, 0, 0), UserEnd.UNREADABLE_MEMORY),
        ((PPC_SP,), UserEnd.NO_UNWIND_INFO),
        ((PPC_SP + 33,), UserEnd.NO_UNWIND_INFO),
        ((PPC_FAR,), UserEnd.NO_UNWIND_INFO),
        ((), UserEnd.UNREADABLE_MEMORY),
    ],
)
def test_ppc64el_ends_of_back_chains(stack: tuple[int, ...], end: UserEnd) -> None:
    assert PpcProcess(stack=stack).walk(BIAS + TRAMPOLINE).end is end
