"""A recording becomes the milestones of its boots: when the kernel was entered, when each level of initcalls began, when init ran.

Most are told by the first sample whose stack goes through a function of the kernel's start (init/main.c, init/do_mounts.c,
fs/super.c), which is the same on every architecture. So each is known to within a sampling interval: it lies between the last halt
without it and the first with it. What was recorded as a milestone (an event of kind ``mark``) and lines of the console that the
user asks for are told by their events.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

from recording.initcalls import LEVELS, initcall_levels
from recording.model import FrameKind, StackEnd
from recording.names import Function
from recording.profile import Appearance, Profile, Stack

MARK = "mark"
"""The kind of events that are milestones by themselves: their text is the name."""
BOOT_CODE = "boot-code"
"""The kind of events that tell of a program from before the kernel: ``boot-loader: GRUB at 0x9000, by …`` (role, name, place)."""
_BOOT_CODE = re.compile(r"([a-z-]+): (.*?) at 0x[0-9a-f]+, by", re.DOTALL)
_ROLES = {
    "option-rom": ("code of an expansion card runs", False),
    "boot-loader": ("the boot loader runs", True),
    "efi-stub": ("the kernel runs as a program of UEFI", True),
    "decompressor": ("the kernel unpacks itself", True),
}
"""Roles of programs from before the kernel: what they mean, and whether a phase begins with them."""
INITCALL = "do_one_initcall"
KERNEL_INIT = "kernel_init"
_USER_ENDS = frozenset({StackEnd.USER_MODE, StackEnd.USER_ENTRY})
_IDLE_ROOTS = frozenset({"rest_init", "cpu_startup_entry"})
_INIT_PID = 1


@dataclass(frozen=True, slots=True)
class Milestone:
    """A moment that divides a boot, or that somebody wanted to know.

    name: a short word, unique in its recording: those of a second boot end in ``#2``. title: what it means.
    time_ns: guest running time since the recording's start at the first sample that shows it, or when its event was noticed.
    after_ns: the last halt before that, when it had not happened yet; None where the recording began later than it.
    begins_phase: whether a phase of the boot begins with it.
    """

    name: str
    title: str
    time_ns: int
    after_ns: int | None
    boot: int = 0
    begins_phase: bool = True


@dataclass(frozen=True, slots=True)
class _Step:
    """A milestone that functions tell: any of these anywhere on a stack, of which none is in ``unless``."""

    name: str
    title: str
    functions: frozenset[str]
    begins_phase: bool = True
    unless: frozenset[str] = field(default_factory=frozenset)


_STEPS = (
    _Step("start_kernel", "the kernel's start on the boot CPU", frozenset({"start_kernel"}), unless=_IDLE_ROOTS),
    _Step("kernel_init", "the task that becomes init runs", frozenset({KERNEL_INIT})),
    _Step("smp_init", "the other CPUs are started", frozenset({"smp_init", "bringup_nonboot_cpus"})),
    _Step(
        "initramfs",
        "the initramfs is unpacked",
        frozenset({"populate_rootfs", "do_populate_rootfs", "unpack_to_rootfs"}),
        begins_phase=False,
    ),
    _Step("prepare_namespace", "the kernel mounts its root file system itself", frozenset({"prepare_namespace", "mount_root"})),
    _Step("free_initmem", "the kernel's start is over and freed", frozenset({"free_initmem", "mark_readonly"})),
    _Step("run_init_process", "init is executed", frozenset({"run_init_process", "try_to_run_init_process"}), begins_phase=False),
    _Step(
        "root-mount",
        "a file system is mounted from a block device or share",
        frozenset(
            {
                *("get_tree_bdev", "get_tree_bdev_flags", "mount_bdev", "get_tree_mtd", "btrfs_get_tree", "btrfs_mount_root"),
                *("nfs_get_tree", "v9fs_get_tree", "v9fs_mount", "virtio_fs_get_tree"),
            }
        ),
    ),
)
_ORDER = {
    name: order
    for order, name in enumerate(
        (
            *("firmware", *_ROLES, "kernel-entry", "start_kernel", "kernel_init", "initcall-early", "smp_init", "initcalls"),
            *(f"initcall-{level}" for level in LEVELS[1:]),
            *("initramfs", "prepare_namespace", "free_initmem", "run_init_process", "user", "init", "root-mount"),
        )
    )
}
"""In which order milestones stand that are first seen in one halt."""


def find_milestones(
    profile: Profile, wanted: Mapping[str, re.Pattern[str]] | None = None, appearances: Iterable[Appearance] | None = None
) -> list[Milestone]:
    """The milestones of a whole recording, whatever the profile selects, in time order.

    wanted: more of them by their names, each the first line of the console that a pattern is found in.
    appearances: of the whole recording in the order of their first times, from who has them already.
    """
    whole = profile.unselected()
    boots: dict[int, _Boot] = {}
    levels = initcall_levels(whole.images)
    roles = _boot_code_roles(whole)
    if appearances is None:
        appearances = whole.appearances() if _shows_start(whole) else ()
    for seen in appearances:
        boot = seen.walk.boot
        found = boots.get(boot)
        if found is None:
            found = boots[boot] = _Boot(boot, levels.get(boot, {}), roles)
        found.see(seen)
    milestones = [milestone for boot in boots.values() for milestone in boot.milestones()]
    known = {milestone.name: milestone.time_ns for milestone in milestones}
    milestones += (each for each in _recorded(whole, wanted or {}) if each.time_ns < known.get(each.name, each.time_ns + 1))
    milestones.sort(key=lambda milestone: (milestone.time_ns, _ORDER.get(milestone.name.partition("#")[0], len(_ORDER))))
    return _unique(milestones)


def _shows_start(profile: Profile) -> bool:
    """Whether any stack is of a boot's start: looking at when each was seen takes a second for a million samples."""
    start, init, idle = (
        {place for place, function in enumerate(profile.functions) if function.kind is FrameKind.KERNEL and function.name in names}
        for names in ({"start_kernel"}, {KERNEL_INIT}, _IDLE_ROOTS)
    )
    return any(
        stack.end is StackEnd.FIRMWARE
        or not init.isdisjoint(stack.indexes)
        or (not start.isdisjoint(stack.indexes) and idle.isdisjoint(stack.indexes))
        for stack in {count.stack for count in profile.counts}
    )


def selected_milestones(profile: Profile) -> list[Milestone]:
    """Those that lie within the selected time."""
    since_ns, until_ns = profile.selection.since_ns, profile.selection.until_ns
    return [
        milestone
        for milestone in find_milestones(profile)
        if (since_ns is None or milestone.time_ns >= since_ns) and (until_ns is None or milestone.time_ns < until_ns)
    ]


class _Boot:
    """What the first sightings of one boot tell."""

    def __init__(self, number: int, levels: Mapping[str, str], roles: Mapping[str, str]) -> None:
        self._number = number
        self._roles = roles
        self._levels = levels
        self._found: dict[str, Milestone] = {}
        self._shows_start = False
        self._left_firmware = False
        self._programs: set[str] = set()
        self._stacks: set[Stack] = set()
        self._of_kernel_init: set[Stack] = set()
        self._kernel_init_until_ns: int | None = None
        self._user: list[Appearance] = []

    def see(self, seen: Appearance) -> None:
        """Take notice of a stack that was not seen before, in time order."""
        stack = seen.walk.stack
        if stack.end is StackEnd.FIRMWARE:
            if not self._left_firmware:
                self._add("firmware", "firmware, boot loader or decompressor run", seen)
                self._see_boot_code(stack, seen)
            return
        if stack.end is StackEnd.NO_KERNEL:
            return
        if stack.end in _USER_ENDS:
            self._user.append(seen)
            self._see_program(seen)
        if stack not in self._stacks:
            self._stacks.add(stack)
            self._see_stack(stack, seen)
        if stack in self._of_kernel_init:
            self._kernel_init_until_ns = max(self._kernel_init_until_ns or 0, seen.last_ns)

    def _see_stack(self, stack: Stack, seen: Appearance) -> None:
        names = {function.name for function in stack.functions if function.kind is FrameKind.KERNEL}
        if not self._left_firmware:
            self._left_firmware = True
            self._add("kernel-entry", "the kernel's first code", seen)
        for step in _STEPS:
            if step.name not in self._found and not names.isdisjoint(step.functions) and names.isdisjoint(step.unless):
                self._add(step.name, step.title, seen, begins_phase=step.begins_phase)
        if KERNEL_INIT in names:
            self._of_kernel_init.add(stack)
            if INITCALL in names:
                self._see_initcall(seen)

    def _see_boot_code(self, stack: Stack, seen: Appearance) -> None:
        role = self._roles.get(stack.functions[-1].module, "")
        if role in _ROLES:
            title, begins_phase = _ROLES[role]
            self._add(role, f"{title}: {stack.functions[-1].module}", seen, begins_phase=begins_phase)

    def _see_initcall(self, seen: Appearance) -> None:
        function = initcall_of(seen.walk.stack)
        level = None if function is None else self._levels.get(function.name)
        if level is not None:
            self._add(f"initcall-{level}", f"initcalls of level {level}", seen)
        elif not self._levels:
            self._add("initcalls", "initcalls; the kernel's symbols do not tell their levels", seen)

    def _see_program(self, seen: Appearance) -> None:
        task = seen.origin.task
        self._add("user", "the first user code runs", seen, begins_phase=False)
        if task is None or task.pid != _INIT_PID or task.process in self._programs:
            return
        if not self._programs:
            self._add("init", f"init runs user code: {task.process}", seen)
        else:
            self._add(f"init:{task.process}", f"init has become {task.process}", seen)
        self._programs.add(task.process)

    def _date_init(self) -> None:
        """User code behind the last sight of ``kernel_init`` shows that this has become init, be init itself sampled or not.

        Before that it may be a helper's, which the kernel calls while it starts (kernel/umh.c).
        """
        until_ns = self._kernel_init_until_ns
        first = next((seen for seen in self._user if until_ns is not None and seen.first_ns > until_ns), None)
        known = self._found.get("init")
        if first is None or first.origin.task is None or (known is not None and known.time_ns <= first.first_ns):
            return
        title = "a process of init's runs user code" if known is None else known.title
        self._found["init"] = Milestone("init", title, first.first_ns, first.before_ns, self._number)

    def _add(self, name: str, title: str, seen: Appearance, *, begins_phase: bool = True) -> None:
        if name not in self._found:
            self._found[name] = Milestone(name, title, seen.first_ns, seen.before_ns, self._number, begins_phase)

    def milestones(self) -> list[Milestone]:
        """None of a guest that had booted already when it was first sampled: what is seen first in it begins nothing."""
        found = self._found
        if {"start_kernel", KERNEL_INIT}.isdisjoint(found) and not set(found) <= {"firmware", *_ROLES}:
            return []
        if "firmware" not in found and found["kernel-entry"].after_ns is None:
            del found["kernel-entry"]
        self._date_init()
        if "user" in found and "init" not in found:
            # Whose the first user code is, is not known.
            found["user"] = replace(found["user"], begins_phase=True)
        return list(found.values())


def _boot_code_roles(profile: Profile) -> dict[str, str]:
    """What programs from before the kernel are there for, by their names."""
    matches = (_BOOT_CODE.match(event.text) for event in profile.events() if event.kind == BOOT_CODE)
    return {match[2]: match[1] for match in matches if match is not None}


def initcall_of(stack: Stack) -> Function | None:
    """The function that ``do_one_initcall`` has called in a stack, None where there is none."""
    for caller, called in pairwise(stack.functions):
        if caller.name == INITCALL and caller.kind is FrameKind.KERNEL:
            return called
    return None


def _recorded(profile: Profile, wanted: Mapping[str, re.Pattern[str]]) -> Iterable[Milestone]:
    """Milestones that events tell."""
    for event in profile.events():
        if event.kind == MARK:
            yield Milestone(event.text, "recorded as a mark", event.running_time_ns, None, begins_phase=False)
    lines = profile.console() if wanted else []
    for name, pattern in wanted.items():
        line = next((line for line in lines if pattern.search(line.text)), None)
        if line is not None:
            yield Milestone(name, f"console: {line.text}", line.running_time_ns, None)


def usual_place(name: str) -> int | None:
    """Where a milestone stands among those of every boot of Linux, from 0; None for others, which may come at any time."""
    return _ORDER.get(name)


def _unique(milestones: list[Milestone]) -> list[Milestone]:
    """Names that come again are numbered: of a second boot, or of marks of one name."""
    count: dict[str, int] = {}
    unique = []
    for milestone in milestones:
        number = count[milestone.name] = count.get(milestone.name, 0) + 1
        unique.append(milestone if number == 1 else replace(milestone, name=f"{milestone.name}#{number}"))
    return unique
