from __future__ import annotations

import pytest

from recording.model import SourceLine, StackEnd
from sampler.gdb.frames import Activation, GdbStack, parse_stack
from sampler.gdb.mi import GdbProtocolError, Record
from sampler.gdb.process import Answer
from sampler.gdb.target import ToldStack
from tests.sampler.gdb.transcripts import record


def told(frames: str, last: str = "", *, error: bool = False) -> ToldStack:
    result = record(f"12^done,stack=[{frames}]") if not error else record('12^error,msg="Cannot access memory at address 0x0"')
    streams: tuple[Record, ...] = (record(f'~"{last}"'),) if last else ()
    return ToldStack(0, Answer("-stack-list-frames", result, ()), Answer("backtrace -1", record("13^done"), streams))


def frame(level: int, pc: int, function: str, line: int | None = None) -> str:
    where = "" if line is None else f',file="w.c",fullname="/src/w.c",line="{line}"'
    return f'frame={{level="{level}",addr="{pc:#010x}",func="{function}"{where},arch="avr:6"}}'


def at(function: str, line: int | None = None) -> SourceLine:
    return SourceLine(function, None if line is None else "/src/w.c", line)


def test_a_stack_with_an_inlined_function() -> None:
    frames = [frame(0, 0x1A, "shared", 10), frame(1, 0x80, "helper", 21), frame(2, 0x80, "beta", 27), frame(3, 0xD6, "main", 35)]
    assert parse_stack(told(",".join(frames), "#3  0x000000d6 in main () at w.c:35\\n")) == GdbStack(
        (
            Activation(0x1A, 0x1A, (at("shared", 10),)),
            Activation(0x80, 0x7F, (at("helper", 21), at("beta", 27))),
            Activation(0xD6, 0xD5, (at("main", 35),)),
        ),
        StackEnd.TASK_ROOT,
    )


def test_a_recursion_is_as_many_activations() -> None:
    frames = [frame(0, 0x30, "leaf", 3), *(frame(level, 0x40, "again", 5) for level in (1, 2, 3)), frame(4, 0x60, "main", 9)]
    stack = parse_stack(told(",".join(frames)))
    assert [(each.pc, [line.name for line in each.lines]) for each in stack.activations] == [
        (0x30, ["leaf"]),
        (0x40, ["again"]),
        (0x40, ["again"]),
        (0x40, ["again"]),
        (0x60, ["main"]),
    ]


def test_a_recursion_through_an_inlined_function() -> None:
    frames = [frame(0, 0x30, "leaf", 3), *(frame(n, 0x40, name, 5 + n % 2) for n, name in ((1, "step"), (2, "again")) * 2)]
    stack = parse_stack(told(",".join(frames)))
    assert [[line.name for line in each.lines] for each in stack.activations] == [["leaf"], ["step", "again"], ["step", "again"]]


def test_what_an_exception_interrupted_is_looked_up_where_it_was() -> None:
    frames = [frame(0, 0x30, "on_tick", 3), frame(1, 0xFFFFFFF9, "<signal handler called>"), frame(2, 0x40, "work", 5)]
    stack = parse_stack(told(",".join([*frames, frame(3, 0x60, "main", 9)])))
    assert [each.lookup_pc for each in stack.activations] == [0x30, 0xFFFFFFF8, 0x40, 0x5F]


def pcs(stack: GdbStack) -> list[tuple[int, bool]]:
    return [(each.pc, each.guess) for each in stack.activations]


def test_a_stack_ends_where_gdb_knows_no_function() -> None:
    # What such code was called by is a guess, and so is the address itself.
    frames = ",".join([frame(0, 0x30, "leaf"), frame(1, 0x99, "??"), frame(2, 0x60, "main")])
    assert parse_stack(told(frames)) == GdbStack((Activation(0x30, 0x30, (at("leaf"),)),), StackEnd.NO_UNWIND_INFO)
    with_guesses = parse_stack(told(frames), guesses=True)
    assert with_guesses.end is StackEnd.NO_UNWIND_INFO
    assert pcs(with_guesses) == [(0x30, False), (0x99, True), (0x60, True)]
    # Where the vCPU itself is in such code, its address is what is known.
    frames = ",".join([frame(0, 0x99, "??"), frame(1, 0x60, "main")])
    assert parse_stack(told(frames)) == GdbStack((Activation(0x99, 0x99, ()),), StackEnd.NO_UNWIND_INFO)
    assert parse_stack(told(frame(0, 0x99, "??"))).end is StackEnd.NO_UNWIND_INFO


def test_a_stack_ends_at_assembler_code_among_code_with_debug_information() -> None:
    # As gdb lists a system call of Linux on x86-64: the last two are what it makes of registers that were pushed.
    frames = [frame(0, 0x30, "ksys_write", 3), frame(1, 0x40, "do_syscall_64", 5), frame(2, 0x60, "entry_SYSCALL_64")]
    frames += [frame(3, 0x246, "fixed_percpu_data"), frame(4, 0, "??")]
    stack = parse_stack(told(",".join(frames)))
    assert (pcs(stack), stack.end) == ([(0x30, False), (0x40, False), (0x60, False)], StackEnd.NO_UNWIND_INFO)
    guessed = parse_stack(told(",".join(frames)), guesses=True)
    assert pcs(guessed)[2:] == [(0x60, False), (0x246, True), (0, True)]
    # In a file without debug information all functions are alike.
    assert len(parse_stack(told(",".join(frame(level, 0x10 * level, f"f{level}") for level in range(5)))).activations) == 5


def test_what_is_above_a_function_that_nothing_calls_is_left_out() -> None:
    frames = ",".join([frame(0, 0x30, "leaf", 3), frame(1, 0x60, "_start", 9), frame(2, 0x5000, "??")])
    stack = parse_stack(told(frames), {"_start"})
    assert (pcs(stack), stack.end) == ([(0x30, False), (0x60, False)], StackEnd.TASK_ROOT)


@pytest.mark.parametrize(
    ("reason", "end"),
    [
        ("", StackEnd.TASK_ROOT),
        ("Cannot access memory at address 0x802200", StackEnd.UNREADABLE_MEMORY),
        ("previous frame identical to this frame (corrupt stack?)", StackEnd.DID_NOT_ADVANCE),
        ("previous frame inner to this frame (corrupt stack?)", StackEnd.DID_NOT_ADVANCE),
        ("not enough registers or memory available to unwind further", StackEnd.UNREADABLE_MEMORY),
        ("frame did not save the PC", StackEnd.NO_UNWIND_INFO),
        ("Backtrace limit of 256 exceeded", StackEnd.DEPTH_LIMIT),
    ],
)
def test_the_reason_of_the_end(reason: str, end: StackEnd) -> None:
    last = f"#1  0x60 in top ()\\nBacktrace stopped: {reason}\\n" if reason else "#1  0x60 in top ()\\n"
    frames = frame(0, 0x30, "leaf") + "," + frame(1, 0x60, "top")
    assert parse_stack(told(frames, last)).end is end
    # Whatever gdb looked for above a function that nothing calls.
    assert parse_stack(told(frames, last), {"top"}).end in {StackEnd.TASK_ROOT, StackEnd.DEPTH_LIMIT} - (
        {StackEnd.DEPTH_LIMIT} if end is not StackEnd.DEPTH_LIMIT else set()
    )


def test_a_stack_of_any_depth_is_cut() -> None:
    stack = parse_stack(told(",".join(frame(level, 0x1000 + level, "f") for level in range(256))), {"f"})
    assert (len(stack.activations), stack.end) == (256, StackEnd.DEPTH_LIMIT)


def test_a_stack_that_gdb_cannot_list_is_empty() -> None:
    assert parse_stack(told("", error=True)) == GdbStack((), StackEnd.UNREADABLE_MEMORY)


@pytest.mark.parametrize("frames", ['"text"', 'frame={level="0"}', 'frame={level="0",addr="zz"}'])
def test_a_damaged_list_is_an_error(frames: str) -> None:
    with pytest.raises(GdbProtocolError, match="check the program given to --gdb"):
        parse_stack(told(frames))
