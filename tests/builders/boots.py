"""A made-up boot on two vCPUs, from firmware to a service, of which everything is known."""

from __future__ import annotations

from pathlib import Path
from random import Random

from recording.model import ClockReading, Context, Event, StackEnd, SystemCall, Task, UserEnd
from tests.builders.profiles import IDLE, IRQ_IN_IDLE
from tests.builders.recordings import MS, Names, Stack, write_recording

BOOT_CPU = "secondary_startup_64 start_kernel"
KERNEL_INIT = "ret_from_fork kernel_init kernel_init_freeable"
INITCALL = f"{KERNEL_INIT} do_one_initcall"
SYSCALL = "entry_SYSCALL_64_after_hwframe do_syscall_64"

SWAPPER = Task(0, 0, "swapper/0", "swapper/0", True)
IDLE_1 = Task(0, 0, "swapper/1", "swapper/1", True)
FIRST = Task(1, 1, "swapper/0", "swapper/0", False)
INIT = Task(1, 1, "init", "init", False, "/")
SYSTEMD = Task(1, 1, "systemd", "systemd", False, "/init.scope")
SSHD = Task(80, 80, "sshd", "sshd", False, "/system.slice/ssh.service")
KWORKER = Task(12, 12, "kworker/0:1", "kworker/0:1", True)
READ, FINIT_MODULE, EXECVE = SystemCall("64", 0, "read"), SystemCall("64", 313, "finit_module"), SystemCall("64", 59, "execve")


def _firmware(vcpu: int) -> Stack:
    return Stack("F:", vcpu, StackEnd.FIRMWARE, context=Context.FIRMWARE)


def _kernel(frames: str, task: Task, end: StackEnd = StackEnd.TASK_ROOT) -> Stack:
    return Stack(frames, 0, end, task=task, context=Context.KERNEL_THREAD)


def _idle(vcpu: int) -> Stack:
    return Stack(IDLE, vcpu, StackEnd.IDLE_ROOT, task=(SWAPPER, IDLE_1)[vcpu], context=Context.IDLE)


def _user(task: Task, path: str) -> Stack:
    return Stack(f"main@{path}", 0, StackEnd.USER_MODE, 10 * MS, UserEnd.THREAD_START, task, Context.USER)


def _call(task: Task, path: str, call: SystemCall, frames: str) -> Stack:
    stack = f"main@{path} {SYSCALL} {frames}"
    return Stack(stack, 0, StackEnd.USER_ENTRY, 10 * MS, UserEnd.THREAD_START, task, Context.SYSTEM_CALL, call)


BOOT = [
    [_firmware(0), _firmware(1)],
    [_firmware(0), _firmware(1)],
    [_kernel("secondary_startup_64 x86_64_start_kernel clear_bss", SWAPPER, StackEnd.IDLE_ROOT), _firmware(1)],
    [_kernel(f"{BOOT_CPU} setup_arch", SWAPPER, StackEnd.IDLE_ROOT), _firmware(1)],
    [_kernel(f"{BOOT_CPU} rest_init", SWAPPER, StackEnd.IDLE_ROOT), _firmware(1)],
    [_kernel(KERNEL_INIT, FIRST), _firmware(1)],
    [_kernel(f"{INITCALL} trace_init", FIRST), _firmware(1)],
    [_kernel(f"{KERNEL_INIT} smp_init", FIRST), _firmware(1)],
    [_kernel(f"{INITCALL} acpi_init acpi_scan", FIRST), _idle(1)],
    [_kernel(f"{INITCALL} acpi_init acpi_scan", FIRST), _idle(1)],
    # A driver that ends by calling another function: the function itself is not on the stack.
    [_kernel(f"{INITCALL} driver_register", FIRST), _idle(1)],
    [_kernel(f"{INITCALL} ata_init", FIRST), _idle(1)],
    [_idle(0), _idle(1)],
    [_idle(0), _idle(1)],
    [Stack(IRQ_IN_IDLE, 0, StackEnd.IDLE_ROOT, task=SWAPPER, context=Context.HARD_IRQ), _idle(1)],
    [_kernel("ret_from_fork kthread worker_thread process_one_work do_populate_rootfs", KWORKER), _idle(1)],
    [_kernel("ret_from_fork kernel_init free_initmem", FIRST), _idle(1)],
    [_user(INIT, "/init"), _idle(1)],
    [_call(INIT, "/init", FINIT_MODULE, "load_module do_one_initcall e1000_init@e1000"), _idle(1)],
    [_call(INIT, "/init", READ, "vfs_read"), _idle(1)],
    [_idle(0), _idle(1)],
    [_call(INIT, "/init", EXECVE, "bprm_execve"), _idle(1)],
    [_user(SYSTEMD, "/usr/lib/systemd/systemd"), _idle(1)],
    [_idle(0), _idle(1)],
    [_user(SSHD, "/usr/sbin/sshd"), _idle(1)],
    [_call(SSHD, "/usr/sbin/sshd", READ, "vfs_read"), _idle(1)],
    [_idle(0), _idle(1)],
]
"""A halt each 10 ms, the first after 10 ms."""

EVENTS = (
    Event(115 * MS, "console", "[    0.052000] ACPI: Core revision 20220331"),
    Event(185 * MS, "module-loaded", "e1000 at 0xffffffffc0000000"),
    Event(200 * MS, "module-loaded", "failover at 0xffffffffc0200000"),
    Event(225 * MS, "module-unloaded", "failover"),
    Event(245 * MS, "console", "Welcome to Debian"),
    Event(250 * MS, "console", "         Starting ssh.service - OpenBSD Secure Shell server..."),
    Event(262 * MS, "console", "[  OK  ] Started ssh.service - OpenBSD Secure Shell server."),
    Event(255 * MS, "mark", "service"),
    Event(265 * MS, "console", "login: "),
    Event(270 * MS, "end", "27 halts are over"),
)


CLOCKS = tuple(
    ClockReading(halt, 0, (10 * halt - 18) // 4 * 4 * MS, (10 * halt - 20) // 4 * 4 * MS) for halt in range(6, len(BOOT))
)
"""A tick each 4 ms; printk's clock begins with the third halt, 2 ms later than the other."""


def boot_recording(path: Path) -> Path:
    return write_recording(path, BOOT, Names(), EVENTS, clocks=CLOCKS)


def varied_boot(path: Path, seed: int, *, spin: int = 0, levels: bool = True, ended: str = "the console says 'login:'") -> Path:
    """A boot on one vCPU whose parts vary in length by a tenth or so.

    spin: so many halts are in a module's start. levels: whether the halt is there that shows the kernel free its start.
    """
    random = Random(seed)

    def about(count: int, *stacks: Stack) -> list[list[Stack]]:
        return [[stacks[index % len(stacks)]] for index in range(round(random.gauss(count, count / 20)))]

    insmod = Task(90, 90, "insmod", "insmod", False, "/")
    init = f"{KERNEL_INIT} do_one_initcall acpi_init"
    loading = "load_module do_one_initcall spinner_init@spinner spin@spinner"
    halts = [
        *about(20, _firmware(0)),
        *about(
            30, *(_kernel(f"{BOOT_CPU} {name}", SWAPPER, StackEnd.IDLE_ROOT) for name in ("setup_arch", "mm_init", "trap_init"))
        ),
        *about(60, *(_kernel(f"{init} {name}", FIRST) for name in ("acpi_scan", "acpi_eval", "acpi_scan", "memset"))),
        *([[_kernel("ret_from_fork kernel_init free_initmem", FIRST)]] if levels else []),
        *about(30, _user(INIT, "/init"), _call(INIT, "/init", READ, "vfs_read"), _idle(0)),
        *[[_call(insmod, "/bin/insmod", FINIT_MODULE, loading)]] * spin,
        *about(10, _user(INIT, "/init")),
    ]
    events = (Event(10 * MS * len(halts), "console", "login:"),)
    return write_recording(path, halts, Names(), events, ended=ended)
