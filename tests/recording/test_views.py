"""Hand-made recordings with totals, trees, time lines and quality that were counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from recording.idle import is_idle
from recording.model import Callchain, Context, Frame, FrameKind, Halt, Image, Sample, Space, StackEnd, UserEnd
from recording.names import FIRMWARE, USER, Function, NamedFrame, Namer
from recording.profile import Moment
from recording.quality import Tally, measure_quality
from recording.reader import Recording, Selection
from recording.store import RecordingWriter
from recording.symbols import SymbolTable
from recording.views import (
    Total,
    call_tree,
    context_totals,
    function_totals,
    module_totals,
    process_totals,
    system_call_totals,
    thread_totals,
    vcpu_totals,
)
from tests.builders.profiles import IDLE, IRQ_IN_IDLE, busy_recording, opened, small_recording
from tests.builders.recordings import MS, Stack, write_recording

KERNEL, MODULE, UNKNOWN = FrameKind.KERNEL, FrameKind.MODULE, FrameKind.UNKNOWN
START = 0xFFFF_FFFF_8100_0000


def image(name: str, kind: FrameKind, start: int, end: int, symbols: dict[int, str] | None, boot: int = 0) -> Image:
    table = None if symbols is None else SymbolTable.from_symbols([(address, "t", symbol) for address, symbol in symbols.items()])
    return Image(name, kind, boot, None, ((start, end),), table)


def test_a_return_address_belongs_to_the_function_that_called() -> None:
    namer = Namer([image("vmlinux", KERNEL, START, START + 0x100, {START: "caller", START + 0x40: "next"})])
    # The call is the last instruction of ``caller``, so the return address is the first of ``next``.
    assert namer.name(Frame(START + 0x40, START + 0x3F), 0) == NamedFrame("caller", 0x40, "[kernel]", KERNEL)
    assert namer.name(Frame(START + 0x40, START + 0x40), 0) == NamedFrame("next", 0, "[kernel]", KERNEL)


def test_what_no_symbol_names() -> None:
    namer = Namer(
        [
            image("vmlinux", KERNEL, START, START + 0x100, {START + 0x10: "first"}),
            image("e1000", MODULE, START + 0x200, START + 0x300, None),
        ]
    )
    assert namer.name(Frame(START, START), 0) == NamedFrame("0xffffffff81000000", None, "[kernel]", KERNEL)
    assert namer.name(Frame(START + 0x204, START + 0x203), 0) == NamedFrame("0xffffffff81000204", None, "[e1000]", MODULE)
    assert namer.name(Frame(START + 0x100, START + 0x100), 0) == NamedFrame("0xffffffff81000100", None, "[unknown]", UNKNOWN)
    assert namer.name(Frame(0x10, 0xF), 0) == NamedFrame("0x10", None, "[unknown]", UNKNOWN)
    assert namer.name(Frame(START + 0x20, START + 0x20), 1) == NamedFrame("0xffffffff81000020", None, "[unknown]", UNKNOWN)
    assert namer.name(Frame(START + 0x20, START + 0x20, Space.USER), 0) == USER
    assert namer.name(Frame(START + 0x20, START + 0x20, Space.FIRMWARE), 0) == FIRMWARE


def test_each_boot_has_its_own_images_and_the_later_image_wins() -> None:
    namer = Namer(
        [
            image("vmlinux", KERNEL, START, START + 0x100, {START: "first_boot"}),
            image("vmlinux", KERNEL, START, START + 0x100, {START: "second_boot"}, boot=1),
            image("old", MODULE, 0x1000, 0x3000, {0x1000: "gone"}),
            image("new", MODULE, 0x2000, 0x2800, {0x2000: "loaded_later"}),
        ]
    )
    frame = Frame(START + 8, START + 8)
    assert [namer.name(frame, boot).name for boot in (0, 1, 2)] == ["first_boot", "second_boot", "0xffffffff81000008"]
    assert [namer.name(Frame(pc, pc), 0).name for pc in (0x1FFF, 0x2000, 0x27FF, 0x2800, 0x2FFF, 0x3000)] == [
        "gone",
        "loaded_later",
        "loaded_later",
        "gone",
        "gone",
        "0x3000",
    ]


@pytest.mark.parametrize(
    ("stack", "idle"),
    [
        (IDLE, True),
        (f"{IDLE} pv_native_safe_halt", True),
        (f"{IDLE} __cpuidle_text_start", True),
        ("cpu_startup_entry do_idle", True),
        ("do_idle cpuidle_idle_call tick_nohz_idle_enter", True),
        ("do_idle call_cpuidle cpuidle_enter cpuidle_enter_state acpi_idle_enter acpi_safe_halt", True),
        (IRQ_IN_IDLE, False),
        ("cpu_startup_entry do_idle schedule_idle", False),
        ("kthread native_safe_halt", False),
        ("native_safe_halt", False),
        ("tick_nohz_idle_enter", False),
        ("kthread", False),
    ],
)
def test_idle_is_waiting_at_the_end_of_the_idle_loop(stack: str, idle: bool) -> None:
    assert is_idle([Function(name.partition("@")[0], "[kernel]", KERNEL) for name in stack.split()]) is idle


def test_user_code_is_never_idle() -> None:
    assert not is_idle([Function("do_idle", "a.out", FrameKind.USER)])
    assert not is_idle([])


def total_of(totals: list[Total], name: str) -> tuple[int, int, int]:
    """(self, total) in ms and samples."""
    (found,) = [total for total in totals if total.name == name]
    return found.self_ns // MS, found.total_ns // MS, found.samples


def test_function_totals(tmp_path: Path) -> None:
    with opened(small_recording(tmp_path / "a")) as profile:
        totals = function_totals(profile)
        assert (profile.samples, profile.weight_ns, profile.vcpus) == (16, 160 * MS, [0, 1])
        assert sum(total.self_ns for total in totals) == 160 * MS
        assert total_of(totals, "copy_to_user") == (30, 30, 3)
        assert total_of(totals, "filemap_read") == (0, 30, 3)
        assert total_of(totals, "ext4_file_read_iter") == (0, 20, 2)
        assert total_of(totals, "walk") == (20, 20, 2)
        assert total_of(totals, "kthread") == (0, 20, 2)
        assert total_of(totals, "default_idle") == (40, 50, 5)
        assert total_of(totals, "e1000_clean") == (10, 10, 1)
        assert total_of(totals, "[user]") == (20, 20, 2)
        assert total_of(totals, "[firmware]") == (20, 20, 2)
        assert total_of(totals, "0xffffc90000001000") == (10, 10, 1)


def test_recursion_is_counted_once(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a", [[Stack("main walk walk other walk")], [Stack("main walk other")]])
    with opened(path) as profile:
        assert function_totals(profile) == [
            Total("main", "[kernel]", KERNEL, 0, 20 * MS, 2),
            Total("other", "[kernel]", KERNEL, 10 * MS, 20 * MS, 2),
            Total("walk", "[kernel]", KERNEL, 10 * MS, 20 * MS, 2),
        ]


def test_module_and_vcpu_totals(tmp_path: Path) -> None:
    with opened(small_recording(tmp_path / "a")) as profile:
        assert module_totals(profile) == [
            Total("[e1000]", "[e1000]", MODULE, 10 * MS, 10 * MS, 1),
            Total("[ext4]", "[ext4]", MODULE, 0, 20 * MS, 2),
            Total("[firmware]", "[firmware]", FrameKind.FIRMWARE, 20 * MS, 20 * MS, 2),
            Total("[kernel]", "[kernel]", KERNEL, 100 * MS, 110 * MS, 11),
            Total("[unknown]", "[unknown]", UNKNOWN, 10 * MS, 10 * MS, 1),
            Total("[user]", "[user]", FrameKind.USER, 20 * MS, 20 * MS, 2),
        ]
        assert vcpu_totals(profile) == [
            Total("vCPU 0", "", UNKNOWN, 80 * MS, 80 * MS, 8),
            Total("vCPU 1", "", UNKNOWN, 80 * MS, 80 * MS, 8),
        ]


@pytest.mark.parametrize(
    ("selection", "samples", "names"),
    [
        (Selection(frozenset({0}), 50 * MS, 60 * MS), 1, ["[user]"]),
        (Selection(frozenset({1}), 10 * MS, 30 * MS), 2, ["[firmware]", *sorted(IDLE.split())]),
        (Selection(frozenset({1}), 10 * MS, 30 * MS, idle=False), 1, ["[firmware]"]),
        (Selection(idle=False, since_ns=70 * MS, until_ns=71 * MS), 2, ["kthread", "ret_from_fork", "walk"]),
        (Selection(frozenset({7})), 0, []),
    ],
)
def test_selections(tmp_path: Path, selection: Selection, samples: int, names: list[str]) -> None:
    with opened(small_recording(tmp_path / "a"), selection) as profile:
        assert profile.samples == samples
        assert sorted(total.name for total in function_totals(profile)) == sorted(names)


def test_call_tree(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a", [[Stack("main walk leaf")], [Stack("main walk")], [Stack("main leaf")], [Stack(IDLE)]])
    with opened(path) as profile:
        root = call_tree(profile)
    assert (root.function.name, root.total_ns, root.samples, root.self_ns, root.is_idle) == ("all", 40 * MS, 4, 0, False)
    by_name = {node.function.name: node for node in root.children.values()}
    assert set(by_name) == {"main", "secondary_startup_64"}
    assert by_name["secondary_startup_64"].is_idle
    children = {
        n.function.name: (n.self_ns // MS, n.total_ns // MS, n.samples, n.is_idle) for n in by_name["main"].children.values()
    }
    assert children == {"walk": (10, 20, 2, False), "leaf": (10, 10, 1, False)}


def test_time_lines_follow_without_holes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    callchain = Callchain((Frame(64, 64),), StackEnd.TASK_ROOT)
    with RecordingWriter(path, clock=lambda: 0.0) as writer:
        for running_ns, vcpus in ((100, [0]), (200, [0, 1]), (300, [1]), (400, [0, 1])):
            halt = writer.add_halt(Halt(running_ns, running_ns, 1, 0))
            for vcpu in vcpus:
                writer.add_sample(Sample(halt, vcpu, 0, 90 if (running_ns, vcpu) == (100, 0) else 100, callchain))
    with opened(path) as profile:
        stack, origin = profile.counts[0].stack, profile.counts[0].origin
        lines = {vcpu: list(moments) for vcpu, moments in profile.timelines()}
    assert lines == {
        0: [
            *(Moment(stack, origin, *at) for at in ((0, 90), (90, 100))),
            Moment(None, None, 190, 100),
            Moment(stack, origin, 290, 100),
        ],
        1: [Moment(None, None, 0, 90), *(Moment(stack, origin, *at) for at in ((90, 100), (190, 100), (290, 100)))],
    }


def test_samples_that_are_not_selected_leave_a_gap(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a", [[Stack("main")], [Stack(IDLE)], [Stack("main")]])
    with opened(path, Selection(idle=False)) as profile:
        ((vcpu, moments),) = [(vcpu, list(moments)) for vcpu, moments in profile.timelines()]
        assert vcpu == 0
        assert [(m.stack is None, m.start_ns // MS, m.duration_ns // MS) for m in moments] == [
            (False, 0, 10),
            (True, 10, 10),
            (False, 20, 10),
        ]


def test_quality_of_the_small_recording(tmp_path: Path) -> None:
    with opened(small_recording(tmp_path / "a")) as profile:
        quality = profile.quality()
    assert (quality.samples, quality.requested_hz, quality.halts, quality.late) == (16, 100.0, 8, 0)
    assert quality.achieved_hz == pytest.approx(95.238095)
    assert quality.halted_share == pytest.approx(8 * 0.5 / (7 * 10.5 + 0.5))
    assert (quality.complete_share, quality.entry_share, quality.user_complete_share) == (10 / 12, 1 / 12, None)
    assert list(quality.ends.items()) == [
        (StackEnd.USER_ENTRY, 2),
        (StackEnd.TASK_ROOT, 2),
        (StackEnd.IDLE_ROOT, 5),
        (StackEnd.USER_MODE, 2),
        (StackEnd.FIRMWARE, 2),
        (StackEnd.ENTRY_WINDOW, 1),
        (StackEnd.NO_UNWIND_INFO, 1),
        (StackEnd.UNREADABLE_MEMORY, 1),
    ]
    assert (quality.halted_p50_ns, quality.halted_p99_ns) == (500_000, 500_000)


def test_late_is_more_than_half_a_period_and_percentiles_are_of_real_halts() -> None:
    halts = [Halt(index * 10 * MS, index * 10 * MS, (index + 1) * 1000, late) for index, late in enumerate((0, 5 * MS, 5 * MS + 1))]
    quality = measure_quality(halts, Tally(), 100)
    assert (quality.late, quality.halted_p50_ns, quality.halted_p99_ns) == (1, 2000, 3000)


def test_reads_between_samples_that_halt_the_guest_count_as_halted() -> None:
    """Through the stub: a halt of 1 ms, 4 ms of reads, 5 ms of running, another halt of 1 ms."""
    halts = [Halt(0, 0, 1 * MS, 0), Halt(10 * MS, 5 * MS, 1 * MS, 0)]
    assert measure_quality(halts, Tally(), 100).halted_share == 6 / 11


def test_what_cannot_be_known_is_none() -> None:
    quality = measure_quality([], Tally(), "fast")
    assert (quality.requested_hz, quality.achieved_hz, quality.late, quality.halted_share) == (None, None, None, None)
    assert (quality.complete_share, quality.entry_share, quality.halted_p50_ns) == (None, None, None)
    only_user = measure_quality([Halt(0, 0, 5, 0)], Tally(ends={StackEnd.USER_MODE: 1}), 100)
    assert (only_user.complete_share, only_user.achieved_hz, only_user.halted_share) == (None, None, 1.0)


def test_a_stack_without_frames_is_shown_by_its_reason(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a", [[Stack("", 0, StackEnd.NO_KERNEL)]])
    with opened(path) as profile:
        assert function_totals(profile) == [Total("[no-kernel]", "[unknown]", UNKNOWN, 10 * MS, 10 * MS, 1)]


def test_late_samples_stand_where_their_halt_was(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with RecordingWriter(path, clock=lambda: 0.0) as writer:
        for index in range(2):
            writer.add_halt(Halt(index, index, 1, 0))
        for halt in (1, 0):
            writer.add_sample(Sample(halt, 0, 0, 1, Callchain((Frame(halt, halt),), StackEnd.TASK_ROOT)))
    with Recording.open(path) as recording:
        assert [sample.halt for sample in recording.samples()] == [0, 1]


def test_processes_contexts_and_idle_are_what_was_recorded(tmp_path: Path) -> None:
    with opened(busy_recording(tmp_path / "a")) as profile:
        assert [(total.name, total.pid, total.samples) for total in process_totals(profile)] == [
            ("[firmware]", None, 1),
            ("[unknown]", None, 2),
            ("kworker/0:1", 12, 1),
            ("python3", 417, 5),
            ("swapper/0", 0, 1),
            ("swapper/1", 0, 2),
        ]
        assert [(total.name, total.samples) for total in context_totals(profile)] == [
            ("user", 3),
            ("system-call", 1),
            ("hard-irq", 2),
            ("idle", 2),
            ("kernel-thread", 1),
            ("firmware", 1),
            ("unknown", 2),
        ]
        assert system_call_totals(profile) == [Total("read", "", KERNEL, 20 * MS, 20 * MS, 2)]
        assert ("pool thread 1", 418) in [(total.name, total.pid) for total in thread_totals(profile)]
        root = call_tree(profile)
    by_name = {node.function.name: (node.samples, node.is_idle, node.is_process) for node in root.children.values()}
    assert by_name["swapper"] == (3, False, True)
    assert by_name["python3"] == (5, False, True)


@pytest.mark.parametrize(
    ("selection", "samples"),
    [
        (Selection(processes=frozenset({"python3"})), 5),
        (Selection(processes=frozenset({"417"})), 5),
        (Selection(processes=frozenset({"418"})), 0),
        (Selection(processes=frozenset({"swapper"})), 3),
        (Selection(processes=frozenset({"swapper/0", "12"})), 2),
        (Selection(processes=frozenset({"[unknown]", "[firmware]"})), 3),
        (Selection(processes=frozenset({"None"})), 0),
        (Selection(contexts=frozenset({Context.HARD_IRQ})), 2),
        (Selection(contexts=frozenset({Context.HARD_IRQ}), processes=frozenset({"python3"})), 1),
        (Selection(idle=False), 10),
        (Selection(idle=False, contexts=frozenset({Context.IDLE})), 0),
    ],
)
def test_selections_of_processes_and_contexts(tmp_path: Path, selection: Selection, samples: int) -> None:
    with opened(busy_recording(tmp_path / "a"), selection) as profile:
        assert profile.samples == samples
        lines = [moment for _, moments in profile.timelines() for moment in moments if moment.stack is not None]
        assert len(lines) == samples
        assert profile.quality().samples == samples


def test_the_recorded_context_decides_about_idle_and_names_do_where_there_is_none(tmp_path: Path) -> None:
    stacks = [Stack(IDLE, context=Context.KERNEL_THREAD), Stack("main", context=Context.IDLE), Stack(IDLE), Stack("main")]
    with opened(write_recording(tmp_path / "a", [[stack] for stack in stacks]), Selection(idle=False)) as profile:
        assert sorted((count.stack.functions[-1].name, count.samples) for count in profile.counts) == [
            ("default_idle", 1),
            ("main", 1),
        ]
        assert {count.origin.context for count in profile.counts} == {Context.KERNEL_THREAD, Context.UNKNOWN}
    with opened(small_recording(tmp_path / "b")) as profile:
        contexts = {total.name: total.samples for total in context_totals(profile)}
    assert contexts == {"user": 2, "idle": 4, "firmware": 2, "unknown": 8}


def test_quality_of_user_stacks_and_tasks(tmp_path: Path) -> None:
    with opened(busy_recording(tmp_path / "a")) as profile:
        quality = profile.quality()
        files = profile.unreadable_files()
    assert quality.user_complete_share == 3 / 5
    assert quality.user_ends == {
        UserEnd.THREAD_START: 3,
        UserEnd.NOT_WANTED: 1,
        UserEnd.NO_MAPPINGS: 1,
        UserEnd.NO_FILE_CONTENTS: 1,
    }
    assert quality.task_share == 9 / 11
    assert len(files) == 7
    assert files[0] == "/opt/tool0: vda1 cannot be opened; run as root"


def user_image(name: str, symbols: dict[int, str] | None, kind: FrameKind = FrameKind.USER) -> Image:
    table = None if symbols is None else SymbolTable.from_symbols([(address, "T", symbol) for address, symbol in symbols.items()])
    return Image(name, kind, 0, None, (), table)


def test_frames_of_an_image_are_named_by_it_alone() -> None:
    namer = Namer(
        [
            user_image("/usr/lib/libfoo.so.1", {0x1000: "_ZN1A1fEv", 0x1100: "", 0x1200: "plain"}),
            user_image("/bin/tool", None),
            user_image("[anon]", None),
            user_image("[vdso]", {0x10: "__vdso_gettimeofday"}),
            user_image("virtio_blk", {START: "virtblk_probe"}, MODULE),
            user_image("bpf_prog_6deef7357e7b4530", None, FrameKind.BPF),
        ]
    )
    frames = {
        (0, 0x1011): NamedFrame("A::f", 0x11, "/usr/lib/libfoo.so.1", FrameKind.USER),
        (0, 0x1150): NamedFrame("libfoo.so.1+0x1150", None, "/usr/lib/libfoo.so.1", FrameKind.USER),
        (0, 0x20): NamedFrame("libfoo.so.1+0x20", None, "/usr/lib/libfoo.so.1", FrameKind.USER),
        (0, 0x1201): NamedFrame("plain", 1, "/usr/lib/libfoo.so.1", FrameKind.USER),
        (1, 0x44): NamedFrame("tool+0x44", None, "/bin/tool", FrameKind.USER),
        (2, 0x44): NamedFrame("[anon]", None, "[anon]", FrameKind.USER),
        (3, 0x44): NamedFrame("__vdso_gettimeofday", 0x34, "[vdso]", FrameKind.USER),
        (3, 0x4): NamedFrame("[vdso]", None, "[vdso]", FrameKind.USER),
        (99, 0x4): NamedFrame("0x4", None, "[unknown]", UNKNOWN),
        (-1, 0x4): NamedFrame("0x4", None, "[unknown]", UNKNOWN),
    }
    made = [Frame(pc, pc - 1, Space.USER, image=image) for image, pc in frames]
    namer.prepare(made)
    assert [namer.name(frame, 7) for frame in made] == list(frames.values())
    assert namer.name(Frame(START + 9, START + 8, image=4), 0) == NamedFrame("virtblk_probe", 9, "[virtio_blk]", MODULE)
    assert namer.name(Frame(START - 9, START - 9, image=4), 0) == NamedFrame(f"{START - 9:#x}", None, "[virtio_blk]", MODULE)
    # Where unwind data tells the start of a function that no symbol names, all its addresses have one name.
    for pc in (0x1150, 0x1168):
        nameless = Frame(pc, pc - 1, Space.USER, image=0, start=0x1140)
        assert namer.name(nameless, 0) == NamedFrame("libfoo.so.1+0x1140", pc - 0x1140, "/usr/lib/libfoo.so.1", FrameKind.USER)
    assert namer.name(Frame(0x1201, 0x1200, Space.USER, image=0, start=0x11F0), 0).name == "plain"
    assert namer.name(Frame(0x44, 0x43, Space.USER, image=2, start=0x40), 0).name == "[anon]"
    assert namer.name(Frame(8, 8, image=5), 0) == NamedFrame("bpf_prog_6deef7357e7b4530", None, "[bpf]", FrameKind.BPF)


def test_guessed_frames_of_the_kernel_are_marked(tmp_path: Path) -> None:
    path = tmp_path / "a.guestprof"
    with RecordingWriter(path, clock=lambda: 0.0) as writer:
        writer.add_image(image("vmlinux", KERNEL, START, START + 0x100, {START: "known", START + 0x40: "doubtful"}))
        writer.add_halt(Halt(MS, MS, 1, 0))
        frames = (Frame(START + 4, START + 4), Frame(START + 0x50, START + 0x4F, guess=True))
        writer.add_sample(Sample(0, 0, 0, MS, Callchain(frames, StackEnd.NO_UNWIND_INFO)))
    with opened(path) as profile:
        assert {total.name for total in function_totals(profile)} == {"known", "? doubtful"}
