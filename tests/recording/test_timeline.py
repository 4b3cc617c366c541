"""A made-up boot, whose milestones, phases, waits and first sightings were counted by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from recording.errors import UnknownMarkError
from recording.initcalls import initcall_levels
from recording.marks import find_mark
from recording.milestones import find_milestones
from recording.model import Callchain, Context, FrameKind, Halt, Image, Sample, StackEnd, Task
from recording.reader import Selection
from recording.store import RecordingWriter
from recording.symbols import SymbolTable
from recording.timeline import timeline_of
from recording.waits import Waker
from tests.builders.boots import BOOT, EVENTS, SSHD, boot_recording
from tests.builders.profiles import busy_recording, hostile_recording, opened
from tests.builders.recordings import MS, Names, Stack, write_recording

MILESTONES = [
    ("firmware", 10, None, True),
    ("kernel-entry", 30, 20, True),
    ("start_kernel", 40, 30, True),
    ("kernel_init", 60, 50, True),
    ("initcalls", 70, 60, True),
    ("smp_init", 80, 70, True),
    ("initramfs", 160, 150, False),
    ("free_initmem", 170, 160, True),
    ("user", 180, 170, False),
    ("init", 180, 170, True),
    ("init:systemd", 230, 220, True),
    ("service", 255, None, False),
]


def test_milestones_of_a_boot(tmp_path: Path) -> None:
    with opened(boot_recording(tmp_path / "a")) as profile:
        found = find_milestones(profile)
    rows = [(each.name, each.time_ns // MS, each.after_ns and each.after_ns // MS, each.begins_phase) for each in found]
    assert rows == MILESTONES


def test_milestones_are_those_of_the_whole_recording(tmp_path: Path) -> None:
    path = boot_recording(tmp_path / "a")
    for selection in (Selection(since_ns=150 * MS), Selection(processes=frozenset({"sshd"})), Selection(idle=False)):
        with opened(path, selection) as profile:
            assert [each.name for each in find_milestones(profile)] == [name for name, *_ in MILESTONES]


def test_lines_of_the_console_that_the_user_names(tmp_path: Path) -> None:
    wanted = {"acpi": re.compile("ACPI"), "login": re.compile("login:"), "never": re.compile("panic")}
    with opened(boot_recording(tmp_path / "a")) as profile:
        found = {each.name: each for each in find_milestones(profile, wanted)}
    assert (found["acpi"].time_ns, found["acpi"].title) == (115 * MS, "console: [    0.052000] ACPI: Core revision 20220331")
    assert found["login"].time_ns == 265 * MS
    assert "never" not in found


def test_init_is_where_another_process_shows_that_it_runs(tmp_path: Path) -> None:
    """A helper that the kernel calls while it starts is none of init's; what runs user code after that is."""
    (user,) = [stacks for stacks in BOOT if stacks[0].task == SSHD and stacks[0].end is StackEnd.USER_MODE]
    (freeing,) = [stacks for stacks in BOOT if "free_initmem" in stacks[0].frames]
    helper = replace(user[0], task=Task(50, 50, "modprobe", "modprobe", False, "/"))
    with opened(write_recording(tmp_path / "a", [*BOOT[:9], [helper], freeing, user, [helper]])) as profile:
        found = {each.name: (each.time_ns // MS, each.title) for each in find_milestones(profile)}
    assert found["user"] == (100, "the first user code runs")
    assert found["init"] == (120, "a process of init's runs user code")


def test_a_guest_that_runs_already_has_no_milestones(tmp_path: Path) -> None:
    """The boot CPU's idle loop has start_kernel at its root for ever, and user code is not the first."""
    with opened(write_recording(tmp_path / "a", BOOT[19:])) as profile:
        assert find_milestones(profile) == []


def test_a_boot_that_was_met_in_the_middle(tmp_path: Path) -> None:
    with opened(write_recording(tmp_path / "a", BOOT[6:9])) as profile:
        rows = [(each.name, each.time_ns // MS, each.after_ns) for each in find_milestones(profile)]
    assert rows == [("kernel_init", 10, None), ("initcalls", 10, None), ("smp_init", 20, 10 * MS)]


def test_a_second_boot_has_milestones_of_its_own(tmp_path: Path) -> None:
    known = Names()
    with RecordingWriter(tmp_path / "a", clock=lambda: 0.0) as writer:
        for index, (boot, stacks) in enumerate([(boot, stacks) for boot in (0, 1) for stacks in BOOT[:7]]):
            halt = writer.add_halt(Halt(10 * MS * index, 10 * MS * (index + 1), 0, 0))
            for stack in stacks:
                chain = Callchain(tuple(known.frame(word) for word in reversed(stack.frames.split())), stack.end)
                writer.add_sample(Sample(halt, stack.vcpu, boot, 10 * MS, chain, stack.task, stack.context))
        for boot in (0, 1):
            for image in known.images():
                writer.add_image(replace(image, boot=boot))
    with opened(tmp_path / "a") as profile:
        found = find_milestones(profile)
        assert find_mark(profile, "start_kernel#2") == 110 * MS
    assert [(each.name, each.boot, each.time_ns // MS) for each in found] == [
        *(("firmware", 0, 10), ("kernel-entry", 0, 30), ("start_kernel", 0, 40), ("kernel_init", 0, 60), ("initcalls", 0, 70)),
        *(("firmware#2", 1, 80), ("kernel-entry#2", 1, 100), ("start_kernel#2", 1, 110), ("kernel_init#2", 1, 130)),
        ("initcalls#2", 1, 140),
    ]


INITCALL_SYMBOLS = (
    (0x1000, "d", "__initcall__kmod_trace__804_42_trace_initearly"),
    (0x1000, "D", "__initcall_start"),
    (0x1004, "D", "__initcall0_start"),
    (0x1004, "D", "__initcall1_start"),
    (0x1004, "D", "__initcall2_start"),
    (0x1004, "D", "__initcall3_start"),
    (0x1004, "d", "__initcall__kmod_acpi__429_1423_acpi_init4"),
    (0x1004, "D", "__initcall4_start"),
    (0x1008, "d", "__initcall__kmod_of_platform__296_546_of_platform_sync_init4s"),
    (0x100C, "d", "__initcall_clk_init444"),
    (0x1010, "d", "__initcall__kmod_a__1_2_twice4"),
    (0x1014, "D", "__initcall5_start"),
    (0x1014, "D", "__initcallrootfs_start"),
    (0x1014, "d", "__initcall__kmod_initramfs__1_2_populate_rootfsrootfs"),
    (0x1018, "D", "__initcall6_start"),
    (0x1018, "d", "__initcall__kmod_b__1_2_twice6"),
    (0x101C, "D", "__initcall7_start"),
    (0x101C, "d", "__initcall__kmod_ata__1_2_ata_init7"),
    (0x1020, "D", "__initcall_end"),
    (0x1024, "d", "__initcall__kmod_x__1_2_beyond7"),
)


def test_levels_of_initcalls_by_the_symbols_of_their_table() -> None:
    table = SymbolTable.from_symbols(INITCALL_SYMBOLS)
    kernel = Image("vmlinux", FrameKind.KERNEL, 3, None, (), table)
    assert initcall_levels([kernel]) == {
        3: {
            "trace_init": "early",
            "acpi_init": "subsys",
            "of_platform_sync_init": "subsys",
            "clk_init44": "subsys",
            "populate_rootfs": "rootfs",
            "ata_init": "late",
        }
    }
    without = SymbolTable.from_symbols([row for row in INITCALL_SYMBOLS if row[2] != "__initcall6_start"])
    assert initcall_levels([replace(kernel, symbols=without), replace(kernel, boot=4, symbols=None)]) == {3: {}}


def test_levels_are_milestones(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a", BOOT, _WithInitcalls())
    with opened(path) as profile:
        found = [(each.name, each.time_ns // MS) for each in find_milestones(profile)]
        initcalls = [(each.function.name, each.level, each.seen.samples) for each in timeline_of(profile).initcalls]
    assert [row for row in found if row[0].startswith("initcall")] == [
        ("initcall-early", 70),
        ("initcall-subsys", 90),
        ("initcall-late", 120),
    ]
    assert initcalls == [
        ("trace_init", "early", 1),
        ("acpi_init", "subsys", 2),
        ("driver_register", None, 1),
        ("ata_init", "late", 1),
        ("e1000_init", "module", 1),
    ]


class _WithInitcalls(Names):
    """A kernel that keeps the symbols of its table of initcalls."""

    def images(self) -> list[Image]:
        return [self._with_table(image) if image.kind is FrameKind.KERNEL else image for image in super().images()]

    def _with_table(self, image: Image) -> Image:
        assert image.symbols is not None
        rows = [(each.address, each.kind, each.name) for each in image.symbols]
        return replace(image, symbols=SymbolTable.from_symbols([*rows, *INITCALL_SYMBOLS]))


def test_phases_of_a_boot(tmp_path: Path) -> None:
    with opened(boot_recording(tmp_path / "a")) as profile:
        course = timeline_of(profile).course
    assert (course.start_ns, course.end_ns, course.interval_p50_ns, course.interval_max_ns) == (0, 270 * MS, 10 * MS, 10 * MS)
    rows = [
        (each.name, each.start_ns // MS, each.duration_ns // MS, each.samples, each.idle_ns // MS, each.user_ns // MS)
        for each in course.phases
    ]
    assert rows == [
        ("firmware", 0, 30, 4, 0, 0),
        ("kernel-entry", 30, 10, 1, 0, 0),
        ("start_kernel", 40, 20, 2, 0, 0),
        ("kernel_init", 60, 10, 1, 0, 0),
        ("initcalls", 70, 10, 1, 0, 0),
        ("smp_init", 80, 90, 17, 100, 0),
        ("free_initmem", 170, 10, 2, 10, 0),
        ("init", 180, 50, 10, 60, 10),
        ("init:systemd", 230, 40, 10, 70, 20),
    ]
    smp = course.phases[5]
    assert (smp.firmware_ns, smp.kernel_ns) == (0, 70 * MS)
    assert [(function.name, weight_ns // MS) for function, weight_ns in smp.top][:2] == [("acpi_scan", 20), ("ata_init", 10)]
    # The second vCPU waits in firmware until the ninth halt, and is not counted before.
    assert sum(each.weight_ns for each in course.phases) == (2 * 270 - 60) * MS


def test_phases_that_begin_and_end_within_one_halt(tmp_path: Path) -> None:
    """On a host that is too busy, no guest running time passes between halts: the first milestones share one moment."""
    known = Names()
    with RecordingWriter(tmp_path / "a", clock=lambda: 0.0) as writer:
        for index, stacks in enumerate(BOOT[:7]):
            halt = writer.add_halt(Halt(10 * MS * index, 10 * MS * max(0, index - 4), 0, 0))
            frames = tuple(known.frame(word) for word in reversed(stacks[0].frames.split()))
            chain = Callchain(frames, stacks[0].end)
            writer.add_sample(Sample(halt, 0, 0, 10 * MS if index > 4 else 0, chain, stacks[0].task, stacks[0].context))
        for image in known.images():
            writer.add_image(image)
    with opened(tmp_path / "a") as profile:
        phases = timeline_of(profile).course.phases
    assert [(each.name, each.start_ns // MS, each.duration_ns // MS, each.samples) for each in phases] == [
        *(("firmware", 0, 0, 0), ("kernel-entry", 0, 0, 0), ("start_kernel", 0, 10, 5)),
        *(("kernel_init", 10, 10, 1), ("initcalls", 20, 0, 1)),
    ]


def test_what_the_boot_waited_for(tmp_path: Path) -> None:
    with opened(boot_recording(tmp_path / "a")) as profile:
        timeline = timeline_of(profile)
    waits = [(each.start_ns // MS, each.end_ns // MS, each.ended_by) for each in timeline.course.waits]
    assert waits == [
        (120, 140, Waker("swapper", Context.HARD_IRQ, None, None)),
        (200, 210, Waker("init", Context.SYSTEM_CALL, "execve", None)),
        (230, 240, Waker("sshd", Context.USER, None, None)),
        (260, 270, None),
    ]
    assert [each.least_ns // MS for each in timeline.course.waits] == [10, 0, 0, 0]
    assert [(each.ended_by.name, each.total_ns // MS, each.waits) for each in timeline.waits] == [
        ("swapper", 20, 1),
        ("init", 10, 1),
        ("sshd", 10, 1),
    ]
    assert timeline.waits[0].stack.functions[-1].name == "e1000_clean"
    assert [(each.vcpu, each.idle_ns // MS, each.longest_ns // MS, each.spans) for each in timeline.course.vcpus] == [
        (0, 50, 20, 4),
        (1, 190, 190, 1),
    ]


def test_waits_for_one_kind_of_thing_are_one_row(tmp_path: Path) -> None:
    """Whichever kworker took the work; another kind of work is another row."""
    idle = BOOT[12]
    work = [
        [
            Stack("ret_from_fork kthread worker_thread process_one_work " + name, 0, task=replace(BOOT[15][0].task, comm=comm)),  # type: ignore[type-var]
            BOOT[15][1],
        ]
        for name, comm in (
            ("flush", "kworker/0:1"),
            ("flush", "kworker/u4:2"),
            ("probe", "kworker/0:1"),
            ("flush late", "kworker/1:0"),
        )
    ]
    halts = [BOOT[3], *(halt for each in work for halt in (idle, each))]
    with opened(write_recording(tmp_path / "a", halts)) as profile:
        totals = timeline_of(profile).waits
    rows = [(each.ended_by.name, each.ended_by.running, each.waits, each.stack_waits, each.longest_ns // MS) for each in totals]
    assert rows == [("kworker", "flush", 3, 2, 10), ("kworker", "probe", 1, 1, 10)]


def test_first_sightings(tmp_path: Path) -> None:
    with opened(boot_recording(tmp_path / "a")) as profile:
        timeline = timeline_of(profile)
    processes = {(each.process.name, each.process.pid): each for each in timeline.processes}
    assert list(processes) == [
        *(("[firmware]", None), ("swapper/0", 0), ("swapper/0", 1), ("swapper/1", 0), ("kworker/0:1", 12)),
        *(("init", 1), ("systemd", 1), ("sshd", 80)),
    ]
    init = processes["init", 1].seen
    assert (init.first_ns // MS, (init.after_ns or 0) // MS, init.last_ns // MS, init.samples) == (180, 170, 220, 4)
    assert processes["sshd", 80].cgroup == "/system.slice/ssh.service"
    assert [(each.path, each.seen.first_ns // MS) for each in timeline.groups] == [
        *(("/", 180), ("/init.scope", 230), ("/system.slice/ssh.service", 250)),
    ]
    assert [(each.process.name, each.name, each.seen.first_ns // MS) for each in timeline.system_calls] == [
        *(("init", "finit_module", 190), ("init", "read", 200), ("init", "execve", 220), ("sshd", "read", 260)),
    ]
    functions = {each.function.name: each for each in timeline.functions}
    assert (functions["[firmware]"].seen.after_ns, functions["acpi_scan"].seen.samples) == (None, 2)
    vfs_read = functions["vfs_read"]
    assert (vfs_read.seen.first_ns // MS, vfs_read.seen.last_ns // MS, vfs_read.process.name) == (200, 260, "init")
    assert [each.seen.first_ns for each in timeline.functions] == sorted(each.seen.first_ns for each in timeline.functions)


def test_modules_by_the_list_of_modules_and_by_stacks(tmp_path: Path) -> None:
    with opened(boot_recording(tmp_path / "a")) as profile:
        e1000, failover = timeline_of(profile).modules
    assert (e1000.name, e1000.loaded_ns, e1000.unloaded_ns) == ("e1000", 185 * MS, None)
    assert e1000.seen is not None
    assert e1000.init is not None
    # Its interrupt handler stands for it before it was loaded, in this made-up boot.
    assert (e1000.seen.first_ns // MS, e1000.seen.samples, e1000.init.first_ns // MS, e1000.init.samples) == (150, 2, 190, 1)
    assert (failover.name, failover.loaded_ns, failover.unloaded_ns, failover.seen) == ("failover", 200 * MS, 225 * MS, None)
    with opened(busy_recording(tmp_path / "b")) as profile:
        modules = timeline_of(profile).modules
    assert [(each.name, each.loaded_ns, each.seen and each.seen.samples) for each in modules] == [
        ("ext4", None, 2),
        ("e1000", None, 2),
    ]


def test_a_selection_of_time(tmp_path: Path) -> None:
    with opened(boot_recording(tmp_path / "a"), Selection(since_ns=200 * MS, until_ns=235 * MS)) as profile:
        timeline = timeline_of(profile)
    assert [(each.name, each.start_ns // MS, each.end_ns // MS) for each in timeline.course.phases] == [
        *(("init", 190, 230), ("init:systemd", 230, 230)),
    ]
    assert [(each.process.name, each.seen.after_ns) for each in timeline.processes][:2] == [("init", None), ("swapper/1", None)]
    assert [each.name for each in timeline.modules] == ["failover"]
    assert [event.kind for event in timeline.events] == ["module-loaded", "module-unloaded"]


def test_nothing_is_selected(tmp_path: Path) -> None:
    with opened(boot_recording(tmp_path / "a"), Selection(since_ns=10**12)) as profile:
        timeline = timeline_of(profile)
    assert (timeline.course.phases, timeline.functions, timeline.waits) == ((), [], [])
    assert len(timeline.milestones) == len(MILESTONES)


def test_names_that_a_guest_made_up(tmp_path: Path) -> None:
    with opened(hostile_recording(tmp_path / "a")) as profile:
        assert len(timeline_of(profile).functions) == 8


@pytest.mark.parametrize(
    ("mark", "time_ms"),
    [
        ("0.25", 250),
        ("250ms", 250),
        ("1.5s", 1500),
        ("start_kernel", 40),
        ("init:systemd", 230),
        ("service", 255),
        ("console:^Welcome", 245),
        ("function:vfs_read", 200),
        ("module:e1000", 150),
        ("process:sshd", 250),
    ],
)
def test_marks(tmp_path: Path, mark: str, time_ms: int) -> None:
    with opened(boot_recording(tmp_path / "a"), Selection(since_ns=260 * MS)) as profile:
        assert find_mark(profile, mark) == time_ms * MS


@pytest.mark.parametrize(
    ("mark", "why"),
    [
        (
            "start_kernal",
            "'start_kernal' is no moment of this recording; .* a milestone .it has firmware, kernel-entry, start_kernel",
        ),
        ("console:panic", "none of the console's 5 lines matches 'panic'"),
        ("console:(", "'\\(' is no regular expression"),
        ("function:nothing", "no sample of this recording shows the function 'nothing'"),
        ("-1", "no moment"),
        ("", "no moment"),
    ],
)
def test_a_mark_that_is_not_there_is_one_sentence(tmp_path: Path, mark: str, why: str) -> None:
    with opened(boot_recording(tmp_path / "a")) as profile, pytest.raises(UnknownMarkError, match=why):
        find_mark(profile, mark)


def test_a_recording_without_console_says_so(tmp_path: Path) -> None:
    events = [event for event in EVENTS if event.kind != "console"]
    path = write_recording(tmp_path / "a", BOOT, Names(), events)
    with opened(path) as profile, pytest.raises(UnknownMarkError, match="no console was recorded"):
        find_mark(profile, "console:login")
