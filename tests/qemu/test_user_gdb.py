"""User stacks against a real gdb that has the programs' files, on the same halted guest: a small ``benchmarks.user_accuracy``."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from benchmarks.user_accuracy import Comparison, Verdict, measure, table
from tests.conftest import skip_loudly

pytestmark = [pytest.mark.qemu, pytest.mark.statistical]

HALTS = 40


@pytest.fixture(scope="module")
def comparisons(guest_kernel: Callable[[str], Path], debian_image: Path) -> list[Comparison]:
    for program, package in (("gdb", "gdb"), ("debugfs", "e2fsprogs")):
        if shutil.which(program) is None:
            skip_loudly(f"{program} is not installed (Debian: {package})")
    found: list[Comparison] = []
    measure(guest_kernel("bookworm"), "bookworm", debian_image, HALTS, Random(1), found.append)
    print("\n".join(table(found)))
    return found


def test_gdb_sees_the_same_stacks(comparisons: list[Comparison]) -> None:
    verdicts = Counter(each.verdict for each in comparisons)
    others = [each.as_json() for each in comparisons if each.verdict not in (Verdict.EQUAL, Verdict.GDB_INVENTS)]
    assert len(comparisons) >= HALTS
    # One of eighty is chance; how many of a thousand, ``benchmarks.user_accuracy`` tells.
    assert verdicts[Verdict.DIFFERENT] <= 1, others
    assert len(others) <= 0.05 * len(comparisons), others
    assert verdicts[Verdict.EQUAL] >= 0.95 * len(comparisons)


def test_they_are_many_programs_in_both_modes(comparisons: list[Comparison]) -> None:
    """So that the figure says something: several builds, user mode and system calls, more than a frame or two."""
    assert len({each.program for each in comparisons}) >= 5
    assert {each.where for each in comparisons} == {"user", "kernel"}
    assert sum(len(each.ours) for each in comparisons) >= 4 * len(comparisons)
