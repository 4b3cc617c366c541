"""What was recorded: plain values that every other package speaks in.

Addresses are guest virtual addresses (``int``), times are integer nanoseconds. Callchains run leaf first; exporters that need
the root first reverse them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from recording.symbols import SymbolTable


class FrameKind(StrEnum):
    """What kind of code a named frame belongs to."""

    KERNEL = "kernel"
    MODULE = "module"
    USER = "user"
    BPF = "bpf"
    FIRMWARE = "firmware"
    UNKNOWN = "unknown"

    __hash__ = str.__hash__  # these are keys in the hottest loops; Enum's own is Python code


class Space(StrEnum):
    """Which code a frame's address belongs to, as the processor's state tells it (a name comes later)."""

    KERNEL = "kernel"
    USER = "user"
    FIRMWARE = "firmware"
    """Code outside the kernel's half that is not the user's: firmware (before the kernel or beneath it), bootloader, decompressor,
    identity-mapped early kernel."""

    __hash__ = str.__hash__  # see FrameKind


class StackEnd(StrEnum):
    """Why a stack walk ended. A truncated stack is data, so each reason has a name."""

    USER_ENTRY = "user-entry"
    """Reached the registers that were saved when the kernel was entered from user mode."""
    TASK_ROOT = "task-root"
    """Reached the first function of a kernel thread or of a new task."""
    IDLE_ROOT = "idle-root"
    """Reached the first function of an idle task (or of the boot CPU's early code)."""
    USER_MODE = "user-mode"
    """The vCPU ran user code: there is no kernel stack."""
    FIRMWARE = "firmware"
    """The vCPU ran code from before the kernel or beneath it (RISC-V's machine mode): its address is kept, it is not unwound."""
    ENTRY_WINDOW = "entry-window"
    """The PC is in kernel entry or exit code: there is no kernel stack yet, or no longer."""
    NO_KERNEL = "no-kernel"
    """The kernel was never found, so there was nothing to unwind with."""
    NO_UNWIND_INFO = "no-unwind-info"
    """No unwind table covers the PC."""
    UNREADABLE_MEMORY = "unreadable-memory"
    """A stack word that the next step needs was not copied or is not mapped."""
    BAD_RETURN_ADDRESS = "bad-return-address"
    """The next return address is not in kernel text, or no call instruction stands before it."""
    DID_NOT_ADVANCE = "did-not-advance"
    """The next frame would lie below this one on the same stack."""
    DEPTH_LIMIT = "depth-limit"
    """More frames than any real stack has."""

    __hash__ = str.__hash__  # see FrameKind

    @property
    def is_proper(self) -> bool:
        """Whether a kernel stack that ends so is whole."""
        return self in _PROPER

    @property
    def is_kernel(self) -> bool:
        """Whether a stack that ends so was a kernel stack at all."""
        return self not in _NOT_KERNEL


class UserEnd(StrEnum):
    """Why the user part of a stack ended, where there is one."""

    THREAD_START = "thread-start"
    """Reached the function in which the thread began (``_start``, ``clone``): the user stack is whole."""
    NOT_WANTED = "not-wanted"
    """The user asked for no user stacks (``--no-user``)."""
    NO_MEMORY = "no-memory"
    """There is no user stack: execve is replacing the process' memory, or the process has freed it on its way out."""
    NO_REGISTERS = "no-registers"
    """The user registers are not known: the kernel was being entered or left, or its own stack could not be walked."""
    NO_MAPPINGS = "no-mappings"
    """What the process had mapped could not be read: it ended first, or its lists are damaged."""
    NOT_READ = "not-read"
    """What the process had mapped was not read: through the stub alone that halts the guest, which had been halted enough."""
    NOT_MAPPED = "not-mapped"
    """A return address is in no executable mapping of the process."""
    NO_UNWIND_INFO = "no-unwind-info"
    """The file has no unwind table for the address, and frame pointers did not lead on."""
    NO_FILE_CONTENTS = "no-file-contents"
    """The file's unwind table is not in guest memory, and no storage or directory that was given has the file."""
    UNREADABLE_MEMORY = "unreadable-memory"
    """A stack word that the next step needs was not copied: it is paged out, or lies above what is copied."""
    DID_NOT_ADVANCE = "did-not-advance"
    """The next frame would lie below this one."""
    DEPTH_LIMIT = "depth-limit"
    """More frames than are kept."""

    __hash__ = str.__hash__  # see FrameKind

    @property
    def is_proper(self) -> bool:
        """Whether a user stack that ends so is whole."""
        return self is UserEnd.THREAD_START

    @property
    def is_stack(self) -> bool:
        """Whether there was a user stack that was to be walked."""
        return self not in _NO_USER_STACK


class Context(StrEnum):
    """What a vCPU was doing, innermost: an interrupt that hit a system call is an interrupt."""

    USER = "user"
    SYSTEM_CALL = "system-call"
    PAGE_FAULT = "page-fault"
    EXCEPTION = "exception"
    """Any other exception of the processor, and NMIs."""
    HARD_IRQ = "hard-irq"
    SOFT_IRQ = "soft-irq"
    IDLE = "idle"
    """The idle loop waiting; an interrupt that hits it is an interrupt."""
    KERNEL_THREAD = "kernel-thread"
    """A kernel thread's own work, and the kernel's start."""
    FIRMWARE = "firmware"
    UNKNOWN = "unknown"
    """No kernel was found yet, or the stack is cut short before it tells."""

    __hash__ = str.__hash__  # see FrameKind


_NO_USER_STACK = frozenset({UserEnd.NOT_WANTED, UserEnd.NO_MEMORY})
_PROPER = frozenset({StackEnd.USER_ENTRY, StackEnd.TASK_ROOT, StackEnd.IDLE_ROOT})
_NOT_KERNEL = frozenset({StackEnd.USER_MODE, StackEnd.FIRMWARE})


@dataclass(frozen=True, slots=True)
class Frame:
    """One function activation of a callchain.

    pc: address as the stack or the register holds it.
    lookup_pc: address to look up a name or unwind row by: ``pc`` itself where the frame was interrupted there, one less
        where ``pc`` is a return address (which may already belong to the next function).
    guess: found by a bounded search of the stack, or by a frame pointer where unwind data was missing; not by unwind data.
    image: index of the image in whose own addresses ``pc`` and ``lookup_pc`` are: a file of user code at its link-time addresses,
        so that every process that maps it shares its frames, or a kernel module at its run-time ones. None: run-time addresses,
        and the images of the boot tell by their ranges.
    start: where the frame's function begins, in the same addresses, if unwind data says so: one that no symbol names is told by it.
    """

    pc: int
    lookup_pc: int
    space: Space = Space.KERNEL
    guess: bool = False
    image: int | None = None
    start: int | None = None


@dataclass(frozen=True, slots=True)
class SourceLine:
    """Where in the source an address is, in one of the functions that are there.

    name: of the function; None where debug information has none, and a symbol says it.
    path: as the compiler was given it. line: from 1; None where the code is of no line.
    """

    name: str | None
    path: str | None
    line: int | None


@dataclass(frozen=True, slots=True)
class Callchain:
    """A call stack, leaf first, and why it ends where it ends: kernel frames, then user frames.

    end: of the kernel part (USER_MODE: there is none). user_end: of the user part, None where there is none.
    """

    frames: tuple[Frame, ...]
    end: StackEnd
    user_end: UserEnd | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A thread of the guest as a sample found it. A thread that renames itself (execve) is another Task from then on.

    pid: of the thread (Linux' own word for it), tgid: of its process. Idle tasks have pid 0.
    comm: the thread's name, process: its process' (the comm of the thread group's leader).
    cgroup: path in the cgroup v2 hierarchy, such as ``/system.slice/ssh.service``; None where there is none.
    """

    pid: int
    tgid: int
    comm: str
    process: str
    is_kernel_thread: bool
    cgroup: str | None = None


@dataclass(frozen=True, slots=True)
class SystemCall:
    """A system call by its number in one of the kernel's tables: ``64`` or ``32`` (compat).

    name: without the kernel's prefixes, None where it is not known.
    """

    table: str
    number: int
    name: str | None

    @property
    def label(self) -> str:
        """Its name, or its table and number where that is not known."""
        return f"{self.table}:{self.number}" if self.name is None else self.name


@dataclass(frozen=True, slots=True)
class Halt:
    """One halt of the whole guest.

    host_time_ns: since the recording's start, at the moment the halt was asked for.
    running_time_ns: the same clock without the time that the guest stood halted.
    halted_ns: from asking for the halt to the last answer before the guest went on (an upper bound of the true halt).
    lateness_ns: how long after its deadline the halt was asked for.
    """

    host_time_ns: int
    running_time_ns: int
    halted_ns: int
    lateness_ns: int


@dataclass(frozen=True, slots=True)
class ClockReading:
    """The guest's own clocks in one halt, as its kernel knew them last: at a tick or a wake-up, so they were later by then.

    halt, boot: see ``Sample``.
    monotonic_ns: ``CLOCK_MONOTONIC``, by which systemd measures; None where it was being changed.
    printk_ns: the clock by which printk stamps its lines (``local_clock``); None where it is not known.
    """

    halt: int
    boot: int
    monotonic_ns: int | None
    printk_ns: int | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One vCPU in one halt.

    halt: index of the halt in the recording, from 0.
    boot: index of the kernel that ran (``Boot``), 0 for the first; a reboot inside a recording starts the next.
    weight_ns: guest running time since the last sample of this vCPU.
    task: what ran, None where it is not known. system_call: where it was in one, whatever interrupted that.
    """

    halt: int
    vcpu: int
    boot: int
    weight_ns: int
    callchain: Callchain
    task: Task | None = None
    context: Context = Context.UNKNOWN
    system_call: SystemCall | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """A piece of code with its symbols, in one boot of the guest.

    name: ``vmlinux``, a module's name, a file's path in the guest; ``[vdso]``, ``[anon]`` and the like for memory of no file.
    boot: index of the kernel run in which the ranges hold.
    build_id: lower-case hex, or None where it is not known.
    ranges: run-time addresses [start, end) of its code; none for a user file, whose frames name it themselves (``Frame.image``).
    symbols: at run-time addresses, a user file's at its link-time addresses; None where there are none.
    """

    name: str
    kind: FrameKind
    boot: int
    build_id: str | None
    ranges: tuple[tuple[int, int], ...]
    symbols: SymbolTable | None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened while recording.

    kind: a short fixed word, such as ``kernel-found`` or ``guest-reset``.
    text: a sentence.
    """

    running_time_ns: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class RawCapture:
    """The bytes that a sample was made from: the registers as the stub sent them, and pieces of guest memory by address.

    unwinder: index of the ``UnwindData`` that its callchain was made with, None where none was needed or known.
    """

    halt: int
    vcpu: int
    registers: bytes
    memory: tuple[tuple[int, bytes], ...]
    unwinder: int | None = None


@dataclass(frozen=True, slots=True)
class KeptFile:
    """What is read of a file of the user's whose code the guest runs (``--elf``), as ``--raw`` keeps it.

    image: its index. size: of the whole file. pieces: (offset, bytes) of it. bias: modulo 2^64. root: see ``--elf``.
    """

    image: int
    size: int
    bias: int
    root: int | None
    pieces: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class OrcData:
    """A kernel's ORC unwind table as it lies in memory (``unwind/orc.py`` reads it).

    version: of its format, 1 to 4.
    address: run-time address of ``ip_table``, whose entries are relative to their own places.
    """

    version: int
    address: int
    ip_table: bytes
    entries: bytes


@dataclass(frozen=True, slots=True)
class LoadedData:
    """A module, or code that the kernel made, as unwinding through it needs it; see ``guest.kernel_code.LoadedCode``.

    kind: MODULE, BPF, or KERNEL for what tracing makes. text: code by address. orc, symbols: None where it has none of its own.
    has_frame_pointer: it keeps one. copy_of: address of the function whose unwind rows fit it, None where it is no copy.
    """

    name: str
    kind: FrameKind
    ranges: tuple[tuple[int, int], ...]
    text: tuple[tuple[int, bytes], ...]
    orc: OrcData | None
    symbols: SymbolTable | None
    has_frame_pointer: bool = False
    copy_of: int | None = None


@dataclass(frozen=True, slots=True)
class FrameData:
    """An unwind table of debug information (``unwind/frame_table.py`` reads it), and where its code is in the guest.

    address: of its first byte at link time, 0 for ``.debug_frame`` (``is_debug``), which has none.
    parts: [start, end) of link-time addresses, and what to add to these for the guest's (modulo 2**64).
    """

    content: bytes
    address: int
    is_debug: bool
    order: Literal["little", "big"]
    parts: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class UnwindData:
    """What unwinding a capture needs of a kernel, beside the symbols of its image, as it was at one time of one boot.

    is_settled, init_text: see ``unwind.kernel.KernelUnwinder``.
    text: code by address, in address order.
    orc: None where frame pointers are followed.
    loaded: what else has code there, in any order. frames: debug information of this machine's files.
    """

    boot: int
    is_settled: bool
    init_text: tuple[int, int]
    text: tuple[tuple[int, bytes], ...]
    orc: OrcData | None
    loaded: tuple[LoadedData, ...] = ()
    frames: tuple[FrameData, ...] = ()
