"""What differs between recordings, and what is noise: by hand, by simulation with known truth, and in corners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

import pytest

from recording.blocks import Side, side_of
from recording.comparison import ComparedRow, Comparison, OfRow, compare
from recording.contrast import LEVEL, Contrast, Difference, Measure, Part, Verdict, corrected
from recording.model import StackEnd
from recording.profile import Profile
from recording.reader import Recording, Selection
from recording.rows import CompareBy
from tests.builders.profiles import BUSY, hostile_recording
from tests.builders.recordings import MS, Names, Stack, write_recording
from tests.builders.sides import boot_side, burst_side, stack_of

SHARE_SELF, SHARE_TOTAL = (Measure.SHARE, OfRow.SELF), (Measure.SHARE, OfRow.TOTAL)
COSTS = {"heavy": 1.0, "second": 0.7, "third": 0.5, "fourth": 0.3, "fifth": 0.2, "sixth": 0.1}


@contextmanager
def compared(
    before: Sequence[Path], after: Sequence[Path], by: CompareBy = CompareBy.FUNCTION, idle: bool = True
) -> Iterator[Comparison]:
    with ExitStack() as stack:
        sides = [
            [Profile(stack.enter_context(Recording.open(path)), Selection(idle=idle)) for path in paths]
            for paths in (before, after)
        ]
        yield compare(sides[0], sides[1], by)


def steady(*stacks: str, count: int = 400, period: int = 1) -> list[list[Stack]]:
    """Halts that go round these stacks, ``period`` halts each."""
    return [[Stack(stacks[index // period % len(stacks)])] for index in range(count)]


def named(comparison: Comparison, name: str) -> ComparedRow:
    (row,) = [row for row in comparison.rows if row.name == name]
    return row


def test_the_interval_of_a_share_by_hand() -> None:
    """Eight blocks of 10 s on both sides: residuals of 1 s and -1 s before, none after."""
    side = Side(by_run=False, is_course=False, runs=1, weights=[10] * 8, samples=80, firsts={0})
    before = {block: 4 if block % 2 else 6 for block in range(8)}
    after = dict.fromkeys(range(8), 6)
    found = Contrast(side, side).difference(Part((before, after), 80), Measure.SHARE)
    # Variance of the sum: 8 / 7 * 8 * 1; t of 0.975 with 7 degrees of freedom: 2.365.
    reach = 2.3646 * (64 / 7) ** 0.5 / 80
    assert (found.before, found.after) == (0.5, 0.6)
    assert found.low == pytest.approx(0.1 - reach, rel=1e-4)
    assert found.high == pytest.approx(0.1 + reach, rel=1e-4)


def test_in_a_boot_only_what_changes_between_neighbours_is_an_error() -> None:
    side = Side(by_run=False, is_course=True, runs=1, weights=[10] * 10, samples=100, firsts={0})
    once = {4: 10, 5: 10, 6: 10}
    found = Contrast(side, side).difference(Part((once, once), 60), Measure.TIME)
    # Two steps of 10 among nine; variance 10 * 200 / 18 on each side; degrees of freedom 162 / 26 of each.
    reach = 2.170 * (2 * 2000 / 18) ** 0.5
    assert found.high == pytest.approx(reach, rel=2e-3)
    assert found.low == pytest.approx(-reach, rel=2e-3)


def test_no_error_is_less_than_that_of_independent_samples() -> None:
    side = Side(by_run=False, is_course=False, runs=1, weights=[100] * 20, samples=2000, squares=2000, firsts={0})
    found = Contrast(side, side).difference(Part((dict.fromkeys(range(20), 10),) * 2, 400), Measure.SHARE)
    assert found.high == pytest.approx(2.024 * (2 * 0.1 * 0.9 / 2000) ** 0.5, rel=1e-3)


def test_holms_correction() -> None:
    assert corrected([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert corrected([]) == []
    assert corrected([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("seed", "burst_s", "vcpus", "seconds"),
    [(11, 0.05, 1, (8.0, 8.0)), (12, 0.2, 1, (8.0, 8.0)), (13, 0.02, 2, (8.0, 8.0)), (14, 0.05, 1, (8.0, 20.0))],
)
def test_false_alarms_are_as_rare_as_stated(seed: int, burst_s: float, vcpus: int, seconds: tuple[float, float]) -> None:
    """Pairs of recordings of the same work in bursts: any row that is called different is a false alarm."""
    random, pairs, alarms, low, tests = Random(seed), 100, 0, 0, 0
    for _ in range(pairs):
        before, after = (burst_side(random, COSTS, seconds=each, vcpus=vcpus, burst_s=burst_s) for each in seconds)
        differences = [row.differences[SHARE_SELF] for row in Comparison(before, after).rows]
        alarms += any(difference.verdict is Verdict.DIFFERENT for difference in differences)
        values = [difference.p for difference in differences if difference.p is not None]
        low += sum(p <= 0.05 for p in values)
        tests += len(values)
    assert alarms <= LEVEL * pairs
    # And a row's own test is honest as well: neither blind nor rash.
    assert tests >= 500
    assert 0.02 <= low / tests <= 0.08


def test_samples_of_one_burst_are_not_taken_for_independent_ones() -> None:
    """The test that takes them so calls noise a difference every other time."""
    random, pairs, naive = Random(21), 60, 0
    for _ in range(pairs):
        before, after = (burst_side(random, COSTS, burst_s=0.2) for _ in range(2))
        counts = [sum(cell.samples for cell in side.cells if cell.stack.functions[0].name == "heavy") for side in (before, after)]
        common = sum(counts) / (before.samples + after.samples)
        error = (common * (1 - common) * (1 / before.samples + 1 / after.samples)) ** 0.5
        naive += abs(counts[0] / before.samples - counts[1] / after.samples) > 1.96 * error
    assert naive >= 0.3 * pairs


def test_a_function_that_became_30_percent_slower_is_found() -> None:
    random, pairs, found = Random(31), 60, 0
    slower = COSTS | {"heavy": 1.3}
    for _ in range(pairs):
        before, after = (burst_side(random, costs, seconds=16, burst_s=0.02, in_turn=True) for costs in (COSTS, slower))
        first = Comparison(before, after).ordered()[0]
        found += first.name == "heavy" and first.verdict(OfRow.SELF) is Verdict.DIFFERENT and first.cause == 0
    assert found >= 0.9 * pairs


COURSE = [("unpack", 1.0), ("memory", 0.4), ("crypto", 1.2), ("pci", 0.5), ("disk", 0.8), ("mount", 0.2), ("login", 0.7)]


def test_boots_are_compared_along_their_course() -> None:
    """What is done once in a boot is no fluctuation: equal boots are told to be equal, a phase that takes 30 % longer is found."""
    random, pairs, alarms, found = Random(61), 40, 0, 0
    slower = [(name, seconds * (1.3 if name == "crypto" else 1)) for name, seconds in COURSE]
    for _ in range(pairs):
        alarms += bool(Comparison(boot_side(random, COURSE), boot_side(random, COURSE)).differing())
        comparison = Comparison(boot_side(random, COURSE), boot_side(random, slower))
        crypto = named(comparison, "crypto")
        longer = crypto.differences[Measure.TIME, OfRow.SELF].change > 0.2e9
        found += longer and crypto.verdict(OfRow.SELF) is Verdict.DIFFERENT
    assert alarms <= LEVEL * pairs
    assert found >= 0.8 * pairs


def test_what_has_another_share_because_of_one_function_follows_from_it() -> None:
    random = Random(41)
    comparison = Comparison(
        burst_side(random, COSTS, seconds=60, burst_s=0.01), burst_side(random, COSTS | {"heavy": 3}, seconds=60, burst_s=0.01)
    )
    first, *others = comparison.ordered()
    assert (first.name, first.cause) == ("heavy", 0)
    different = [row for row in others if row.verdict(OfRow.SELF) is Verdict.DIFFERENT]
    assert {row.name for row in different} >= {"second", "third", "fourth"}
    assert all(SHARE_SELF in row.follows for row in different)


def test_a_caller_follows_from_what_it_calls(tmp_path: Path) -> None:
    before = write_recording(tmp_path / "a", steady("main f", "main g", "other", "other"))
    after = write_recording(tmp_path / "b", steady("main f", "main f", "main g", "main f", "other", "other", count=402))
    with compared([before], [after]) as comparison:
        assert comparison.ordered()[0].name == "f"
        main = named(comparison, "main")
        assert main.differences[SHARE_TOTAL].verdict is Verdict.DIFFERENT
        assert SHARE_TOTAL in main.follows
        assert main.differences[SHARE_SELF] == Difference(0, 0)


def test_a_recording_and_itself(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a", steady("main f", "main g", "idle", period=3))
    for by in CompareBy:
        with compared([path], [path], by) as comparison:
            assert comparison.is_testable
            assert not comparison.differing()
            assert all(difference.change == 0 for row in comparison.rows for difference in row.differences.values())


def test_halves_of_one_recording(tmp_path: Path) -> None:
    random = Random(51)
    words = [random.choice("abcdef") for _ in range(120)]
    path = write_recording(tmp_path / "a", [[Stack(f"main {word}")] for word in words for _ in range(random.randrange(1, 12))])
    with Recording.open(path) as recording:
        middle = recording.timeline_start(Selection()) + 5 * MS + 10 * MS * (Profile(recording).samples // 2)
        halves = [Profile(recording, selection) for selection in (Selection(until_ns=middle), Selection(since_ns=middle))]
        comparison = compare(halves[:1], halves[1:])
    assert comparison.tests > 5
    assert not comparison.differing()


def test_rows_of_one_side_only(tmp_path: Path) -> None:
    before = write_recording(tmp_path / "a", steady("main old", "main same"))
    after = write_recording(tmp_path / "b", steady("main new", "main same"))
    with compared([before], [after]) as comparison:
        assert {row.name for row in comparison.differing()} == {"old", "new"}
        gone, came = named(comparison, "old").differences[SHARE_SELF], named(comparison, "new").differences[SHARE_SELF]
        assert (gone.before, gone.after, came.before, came.after) == (0.5, 0, 0, 0.5)
        assert named(comparison, "new").samples == (0, 200)


def test_paths_are_told_apart(tmp_path: Path) -> None:
    before = write_recording(tmp_path / "a", steady("main f leaf", "main g leaf"))
    after = write_recording(tmp_path / "b", steady("main f leaf", "main f leaf", "main f leaf", "main g leaf"))
    with compared([before], [after]) as by_function, compared([before], [after], CompareBy.PATH) as by_path:
        assert named(by_function, "leaf").verdict(OfRow.SELF) is Verdict.NOISE
        assert {row.path for row in by_path.rows} == {("main",), ("main", "f", "leaf"), ("main", "g", "leaf")}
        found = {row.path: row.differences[SHARE_SELF].change for row in by_path.differing()}
        assert found == {("main", "f", "leaf"): 0.25, ("main", "g", "leaf"): -0.25}


def test_other_builds_and_architectures_are_matched_by_name(tmp_path: Path) -> None:
    one = Names(shown={"f": "work.isra.0", "call": "__x64_sys_read"})
    other = Names(kernel=["unused"] * 3, shown={"f": "work.constprop.2", "call": "__arm64_sys_read"})
    before = write_recording(tmp_path / "a", steady("call f", "call ?", "f@/usr/lib/x86_64-linux-gnu/libm.so.6"), one)
    after = write_recording(tmp_path / "b", steady("call f", "call ?", "f@/usr/lib/aarch64-linux-gnu/libm.so.6"), other)
    with compared([before], [after]) as comparison:
        assert {row.name for row in comparison.rows} == {"work", "sys_read", "[no symbol]"}
        assert not comparison.differing()


@pytest.mark.parametrize("halts", [0, 1, 2, 31])
def test_too_short_recordings_are_compared_and_not_tested(tmp_path: Path, halts: int) -> None:
    short = write_recording(tmp_path / "a", steady("main f", count=halts))
    long = write_recording(tmp_path / "b", steady("main f", "main g"))
    for sides in ((short, long), (long, short), (short, short)):
        for by in CompareBy:
            with compared([sides[0]], [sides[1]], by) as comparison:
                assert not comparison.is_testable
                assert comparison.tests == 0
                assert all(row.verdict(OfRow.TOTAL) is Verdict.UNTESTED for row in comparison.ordered())


def test_where_all_time_is_one_functions(tmp_path: Path) -> None:
    one = write_recording(tmp_path / "a", steady("f"))
    other = write_recording(tmp_path / "b", steady("g"))
    with compared([one], [other]) as comparison:
        assert {(row.name, row.verdict(OfRow.SELF)) for row in comparison.rows} == {
            ("f", Verdict.DIFFERENT),
            ("g", Verdict.DIFFERENT),
        }


def test_rows_of_few_samples_are_not_tested(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a", [*steady("f", "g"), *[[Stack("rare")]] * 4])
    with compared([path], [path]) as comparison:
        assert named(comparison, "rare").verdict(OfRow.SELF) is Verdict.UNTESTED
        assert named(comparison, "f").verdict(OfRow.SELF) is Verdict.NOISE


def test_five_recordings_of_each_side_are_the_blocks(tmp_path: Path) -> None:
    """Runs that vary more than samples within them: no difference; runs that do not: a difference."""

    def runs(name: str, shares: Sequence[int]) -> list[Path]:
        made = []
        for index, share in enumerate(shares):
            stacks = ["f"] * share + ["g"] * (20 - share)
            made.append(write_recording(tmp_path / f"{name}{index}", steady(*stacks, count=160)))
        return made

    with compared(runs("a", (8, 9, 10, 11, 12)), runs("b", (10, 11, 12, 13, 14))) as comparison:
        assert [len(side.weights) for side in comparison.sides] == [5, 5]
        assert not comparison.differing()
        assert named(comparison, "f").differences[Measure.TIME, OfRow.SELF].before == 800 * MS
    with compared(runs("c", (10,) * 5), runs("d", (14,) * 5)) as comparison:
        assert {row.name for row in comparison.differing()} == {"f", "g"}
    # Four of each are not enough to see how they vary: their time is cut into blocks.
    with compared(runs("e", (10,) * 4), runs("f", (14,) * 4)) as comparison:
        assert len(comparison.sides[0].weights) == 80


def test_boots_are_known_by_their_first_sample(tmp_path: Path) -> None:
    boot = write_recording(tmp_path / "a", [[Stack("F:", 0, StackEnd.FIRMWARE)], *steady("f")])
    piece = write_recording(tmp_path / "b", steady("f"))
    with Recording.open(boot) as one, Recording.open(piece) as other:
        assert side_of([Profile(one, Selection(since_ns=50 * MS))]).is_course
        assert not side_of([Profile(one)]).is_bounded
        for ended, is_bounded in (("20 s are over", False), ("SIGINT came", False), ("init was reached", True)):
            one.meta["ended"] = ended
            assert side_of([Profile(one)]).is_bounded is is_bounded
        assert not side_of([Profile(other)]).is_course
        assert not side_of([Profile(other)]).is_bounded
        assert side_of([Profile(other, Selection(until_ns=MS))]).is_bounded


def test_hostile_names_are_keys_like_others(tmp_path: Path) -> None:
    path = hostile_recording(tmp_path / "a")
    for by in CompareBy:
        with compared([path], [path], by) as comparison:
            assert bool(comparison.rows) is (by is not CompareBy.SYSTEM_CALL)
            assert comparison.ordered() == comparison.ordered()


def test_processes_and_what_they_did(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a", BUSY * 20)
    with compared([path], [path], CompareBy.PROCESS) as comparison:
        assert {row.name for row in comparison.rows} == {"python3", "swapper", "kworker", "[firmware]", "[unknown]"}
    with compared([path], [path], CompareBy.SYSTEM_CALL) as comparison:
        (row,) = comparison.rows
        assert row.name == "read"
        assert row.differences[SHARE_TOTAL].before == pytest.approx(2 / 12)
    with compared([path], [path], CompareBy.PATH) as comparison:
        assert ("python3", "_start", "main", "read") in {row.path[:4] for row in comparison.rows}


def test_the_row_of_a_function(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a", steady("main f"))
    with compared([path], [path]) as comparison:
        row = comparison.row_of(stack_of("f").functions[0])
        assert row is not None
        assert row.name == "f"
        assert comparison.row_of(stack_of("absent").functions[0]) is None
