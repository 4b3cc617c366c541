"""Halts of real stock kernels, unwound again: every callchain as it was when the unwinder agreed with gdb (docs/accuracy.md).

A line that differs is a regression, or an improvement to look at, to check with benchmarks/accuracy.py, and to write with --bless.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.builders.captures import CaptureSet, NotKeptError, load_captures

DIRECTORY = Path(__file__).resolve().parent.parent / "captures"
NAMES = [f"{kernel}{mode}" for kernel in ("5.10", "6.1", "6.12", "7.2") for mode in ("", "-singlestep")]

VERSIONS = [1, 1, 3, 4]
"""Of the ORC tables of these kernels."""
ENDS = {"user-entry", "user-mode", "task-root", "idle-root", "entry-window", "no-unwind-info"}
"""How stacks of these kernels end, seen in 85,000 captures."""
WHAT = (
    *("ret_from_fork+0x0", "ret_from_fork_asm+0x0"),  # new tasks
    *("asm_sysvec_apic_timer_interrupt+", "asm_call_irq_on_stack+", "asm_exc_page_fault+", "error_entry+"),
    *("preempt_schedule_thunk+", "__x86_indirect_thunk_array+", "__x86_indirect_thunk_rbx+"),
    "~__schedule+",
)
"""Frames in which walks go other ways than by a plain row."""


def load(name: str) -> CaptureSet:
    return load_captures(DIRECTORY / f"{name}.json.xz")


def ends(name: str) -> Counter[str]:
    lines = (DIRECTORY / f"{name}.txt").read_text("utf-8").splitlines()
    return Counter(line.partition(":")[0] for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_callchains_of_real_kernels(request: pytest.FixtureRequest, name: str) -> None:
    captures = load(name)
    unwinder = captures.unwinder()
    lines = [captures.describe(unwinder.unwind(capture).callchain) for capture in captures.captures]
    path = DIRECTORY / f"{name}.txt"
    if request.config.getoption("--bless"):
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    assert lines == path.read_text("utf-8").splitlines()


def test_the_captures_are_of_each_kind() -> None:
    assert {path.name for path in DIRECTORY.iterdir() if path.suffix == ".xz"} == {f"{name}.json.xz" for name in NAMES}
    assert [load(name).version for name in NAMES[::2]] == VERSIONS
    seen = sum((ends(name) for name in NAMES), Counter[str]())
    assert set(seen) == ENDS
    text = "".join((DIRECTORY / f"{name}.txt").read_text("utf-8") for name in NAMES)
    for what in WHAT:
        assert what in text


def test_a_question_that_no_walk_asked_is_refused() -> None:
    captures = load("6.1")
    start, end = captures.ranges[0]
    with pytest.raises(NotKeptError, match="does not hold the unwind row for"):
        captures.rows.find_row(start)
    with pytest.raises(NotKeptError, match="does not hold the symbol at"):
        captures.symbols.find_at(end - 1)
    with pytest.raises(NotKeptError, match="does not hold the code at"):
        captures.text.read(end - 8, 8)
    assert captures.text.read(end, 8) is None
