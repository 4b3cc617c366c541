"""The recordings that exporters are tested with, and what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recording.model import Context, Event, StackEnd, SystemCall, Task, UserEnd
from recording.profile import Profile
from recording.reader import Recording, Selection
from tests.builders.recordings import MS, Names, Stack, write_recording

SYSCALL = "entry_SYSCALL_64_after_hwframe do_syscall_64"
READ = f"{SYSCALL} ksys_read vfs_read ext4_file_read_iter@ext4 filemap_read copy_to_user"
IDLE = "secondary_startup_64 cpu_startup_entry do_idle default_idle_call default_idle"
IRQ_IN_IDLE = f"{IDLE} asm_sysvec_apic_timer_interrupt sysvec_apic_timer_interrupt e1000_clean@e1000"
RECURSIVE = "ret_from_fork kthread walk walk walk"

SMALL = [
    [Stack("F:", 0, StackEnd.FIRMWARE), Stack("F:", 1, StackEnd.FIRMWARE)],
    [Stack(READ, 0, StackEnd.USER_ENTRY), Stack(IDLE, 1, StackEnd.IDLE_ROOT)],
    [Stack(READ, 0, StackEnd.USER_ENTRY), Stack(IDLE, 1, StackEnd.IDLE_ROOT)],
    [Stack("U:16", 0, StackEnd.USER_MODE), Stack(IRQ_IN_IDLE, 1, StackEnd.IDLE_ROOT)],
    [Stack("U:32", 0, StackEnd.USER_MODE), Stack(IDLE, 1, StackEnd.IDLE_ROOT)],
    [Stack("entry_SYSCALL_64", 0, StackEnd.ENTRY_WINDOW), Stack(IDLE, 1, StackEnd.IDLE_ROOT)],
    [Stack(RECURSIVE, 0, StackEnd.TASK_ROOT), Stack(RECURSIVE, 1, StackEnd.TASK_ROOT)],
    [Stack("filemap_read copy_to_user", 0, StackEnd.UNREADABLE_MEMORY), Stack("?", 1, StackEnd.NO_UNWIND_INFO)],
]
"""16 samples of 10 ms: 2 in firmware, 2 in user code, 12 in the kernel, of which 10 are whole (one in an entry window)."""

PYTHON = Task(417, 417, "python3", "python3", False, "/user.slice")
HELPER_THREAD = Task(418, 417, "pool thread 1", "python3", False, "/user.slice")
WORKER = Task(12, 12, "kworker/0:1", "kworker/0:1", True)
IDLE_0, IDLE_1 = (Task(0, 0, f"swapper/{vcpu}", f"swapper/{vcpu}", True) for vcpu in (0, 1))
MAIN = "_start@/usr/bin/python3.11 main@/usr/bin/python3.11"
READ_CALL = SystemCall("64", 0, "read")

BUSY = [
    [
        Stack("F:", 0, StackEnd.FIRMWARE, context=Context.FIRMWARE),
        Stack("?", 1, StackEnd.NO_KERNEL),
    ],
    [
        Stack(
            f"{MAIN} read@/usr/lib/libc.so.6 {READ}",
            0,
            StackEnd.USER_ENTRY,
            10 * MS,
            UserEnd.THREAD_START,
            PYTHON,
            Context.SYSTEM_CALL,
            READ_CALL,
        ),
        Stack(IDLE, 1, StackEnd.IDLE_ROOT, task=IDLE_1, context=Context.IDLE),
    ],
    [
        Stack(
            f"{MAIN} _ZN3foo3barILi3EEEvT_@/usr/lib/libfoo.so.1 @/usr/lib/libfoo.so.1",
            0,
            StackEnd.USER_MODE,
            10 * MS,
            UserEnd.THREAD_START,
            PYTHON,
            Context.USER,
        ),
        Stack(
            "clone@/usr/lib/libc.so.6 @[anon]", 1, StackEnd.USER_MODE, 10 * MS, UserEnd.THREAD_START, HELPER_THREAD, Context.USER
        ),
    ],
    [
        Stack("@/opt/tool", 0, StackEnd.USER_MODE, 10 * MS, UserEnd.NO_FILE_CONTENTS, PYTHON, Context.USER),
        Stack(
            "ret_from_fork kthread worker_thread e1000_watchdog@e1000",
            1,
            StackEnd.TASK_ROOT,
            task=WORKER,
            context=Context.KERNEL_THREAD,
        ),
    ],
    [
        Stack(f"{IRQ_IN_IDLE}", 0, StackEnd.IDLE_ROOT, task=IDLE_0, context=Context.HARD_IRQ),
        Stack(IDLE, 1, StackEnd.IDLE_ROOT, task=IDLE_1, context=Context.IDLE),
    ],
    [
        Stack(
            f"{READ} asm_sysvec_apic_timer_interrupt",
            0,
            StackEnd.USER_ENTRY,
            10 * MS,
            UserEnd.NO_MAPPINGS,
            PYTHON,
            Context.HARD_IRQ,
            READ_CALL,
        ),
        Stack("entry_SYSCALL_64", 1, StackEnd.ENTRY_WINDOW, 10 * MS, UserEnd.NOT_WANTED, None, Context.UNKNOWN),
    ],
]
"""12 samples of 10 ms: 6 of python3 and its thread, 3 of idle tasks, 1 of a kernel thread, 1 in firmware, 2 of nobody known."""
UNREADABLE = tuple(Event(MS, "file-unreadable", f"/opt/tool{index}: vda1 cannot be opened; run as root") for index in range(7))

HOSTILE_NAMES = (
    "semi;colon",
    "line\nbreak\r",
    "<script>alert('1')</script>&\"]]>",
    "bytes\udcff",
    "x" * 10_000,
    "\u05d0\u05d1\u05d2\u202e\u2066txt",
    "ends_in 12",
    "\x1b[31mred\x07\ufffe",
)


def small_recording(path: Path) -> Path:
    return write_recording(path, SMALL)


def busy_recording(path: Path) -> Path:
    return write_recording(path, BUSY, Names(), UNREADABLE)


def hostile_recording(path: Path) -> Path:
    """One sample for each name, called by the one after it."""
    count = len(HOSTILE_NAMES)
    names = Names(shown={f"f{index}": name for index, name in enumerate(HOSTILE_NAMES)})
    return write_recording(path, [[Stack(f"f{(index + 1) % count} f{index}")] for index in range(count)], names)


@contextmanager
def opened(path: Path, selection: Selection | None = None) -> Iterator[Profile]:
    """The profile of a recording, for as long as it is looked at."""
    with Recording.open(path) as recording:
        yield Profile(recording, selection)
