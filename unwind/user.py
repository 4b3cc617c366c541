"""The user registers and stack of a thread become the user part of its callchain.

Unwind data (CFI) decides where there is some. Elsewhere, in files without any (Go programs) and in code that was made at run time,
the frame pointer is followed, checked, and what it leads to is marked as a guess: a function that has not set up its frame yet, or
keeps none, hides its caller so. For architectures whose compilers make neither, the code itself tells (``unwind/code_rows.py``).

A stack is whole, THREAD_START, where one of these says so, each of which somebody wrote on purpose:

* The row leaves the return address undefined (DWARF 5, 6.4.4): ``_start``, ``clone`` and ``clone3`` of glibc.
* The return address would lie at or above the place where the kernel put the program's arguments (``mm->start_stack``): the frame
  is the program's entry point. ld.so's and musl's have no rows or ones that do not say it.
* The return address is 0 while unwind data led here: nothing can return there (``vm.mmap_min_addr``), who made the stack put it
  there.
* Unwind data led to the very beginning of a function, which no call does: glibc's makecontext() has its thread return to
  ``__start_context``.
* The code is known to end a thread (``UserAbi.known_row``): glibc's ``clone`` for Arm, which has no unwind data.
* There is no row, and the pc is within the program's entry point (static programs have no row there).
* There is no row, and the frame pointer is 0 at most a few words below the arguments: entry code that has pushed something.
* A back chain that was followed here is 0, or its return address (ELFv2 ABI 2.2.2.1: "the first stack frame ... shall be zero").
* A frame pointer that was followed here is 0 (System V ABI, AMD64 3.4.1: "mark the deepest stack frame by setting the frame pointer
  to zero"), as for Go's ``runtime.goexit``. An rbp of 0 that unwind data led to says nothing: it may be any value of the program's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Protocol

from recording.model import Frame, Space, UserEnd
from unwind.arch import Architecture
from unwind.frame_table import Unread
from unwind.instructions import Instruction
from unwind.rules import Missing, ReadWord, Row, RowKind, find_caller, find_cfa
from unwind.user_abi import UserAbi

_DEPTH_LIMIT = 512
"""A stack of 16 KiB, as much as is copied unless the user asks for more, has room for at most twice as many frames."""
_STACK_REACH = 1 << 16
"""A frame pointer further from the stack pointer is none; one that is nearer and cannot be read lies above what was copied."""
_ENTRY_WORDS = 8
"""Entry code pushes no more than this below the program's arguments before it calls C (i386's and x86-64's ``_dl_start_user``)."""
_ADDRESS_MASK = 0xFFFF_FFFF_FFFF_FFFF


class UserRows(Protocol):
    """The unwind table of a file."""

    def find_row(self, address: int) -> Row | Unread | None:
        """The row for a link-time address; None where the table says nothing about it."""

    def find_start(self, address: int) -> int | None:
        """Where the function begins whose row is the one for a link-time address; None where that is not known."""


@dataclass(frozen=True, slots=True)
class Region:
    """An executable mapping [start, end) of a process.

    bias: run-time minus link-time addresses of its file.
    image: index of the file's image; None for memory of no file, whose frames keep their run-time addresses.
    rows: its unwind table, None where it is known to have none. (Not known yet: an object that answers UNREAD.)
    entry: link-time address at which its program begins, None where that is not known.
    entry_end: where the code ends with which it begins; 0 where that is not known.
    code: rows out of its code, where there may be no others. checked: those of programs whose return addresses are looked at.
    """

    start: int
    end: int
    bias: int = 0
    image: int | None = None
    rows: UserRows | None = None
    entry: int | None = None
    code: UserCodeRows | None = None
    checked: CheckedUserCode | None = None
    entry_end: int = 0

    def is_entry(self, address: int, size: int) -> bool:
        """Whether a link-time address is in the few instructions with which its program begins; ``size``: their bytes."""
        return self.entry is not None and self.entry <= address < max(self.entry + size, self.entry_end)


class UserCodeRows(Protocol):
    """The code of a file."""

    def find_code_rows(self, address: int, *, interrupted: bool) -> Sequence[Row]:
        """The rows for the instruction at a link-time address, which a call returns to unless it was interrupted; likeliest first.

        Where calls push their return address, only those hold that lead to one.
        """

    def find_call(self, address: int) -> Instruction | None:
        """The call that returns to a link-time address, None where there is none."""


class CheckedUserCode(Protocol):
    """The code of a file (``unwind/checked_rows.py``). Addresses are link-time ones, odd in the other instruction set."""

    def find_rows(self, address: int, *, interrupted: bool) -> Iterator[Row]:
        """Rows for the instruction at an address, which a call returns to unless it was interrupted, the best first."""

    def find_known_row(self, address: int, *, interrupted: bool) -> Row | None:
        """The row for code that is known by its bytes, None for other code."""

    def is_return(self, address: int) -> bool:
        """False for an address that no call returns to, where that can be told."""


class UserCode(Protocol):
    """The executable mappings of a process."""

    def find_region(self, address: int) -> Region | None:
        """The executable mapping at a run-time address."""


@dataclass(frozen=True, slots=True)
class UserWalk:
    """The user frames, leaf first, and why they end; ``unread``: images whose unwind tables are wanted to go on."""

    frames: tuple[Frame, ...]
    end: UserEnd
    unread: frozenset[int] = frozenset()


class Activation(NamedTuple):
    """A frame on the way. interrupted: its pc is no return address. by_pointer: a frame pointer led to it.

    has_sp: its stack pointer is known, and not just a lower bound of it.
    mode: 1 in the other instruction set (``UserAbi.mode_flag``).
    """

    registers: Mapping[str, int]
    region: Region | None
    interrupted: bool = False
    by_pointer: bool = False
    has_sp: bool = True
    mode: int = 0


Step = Activation | UserEnd


class UserUnwinder:
    """Walks user stacks. Reads nothing but what it is given."""

    def __init__(self, architecture: Architecture) -> None:
        self._abis = architecture.user_abis
        self._byteorder = architecture.byteorder

    def unwind(
        self,
        registers: Mapping[str, int],
        read: Callable[[int, int], bytes | None],
        code: UserCode,
        stack_top: int | None = None,
        *,
        in_system_call: bool = False,
    ) -> UserWalk:
        """The frames of one thread. Never raises for what a guest may hold.

        read: bytes of user memory, None where they are not known whole. stack_top: where the kernel put the program's arguments.
        in_system_call: the thread is in the kernel by a system call, so that its instruction stands before the pc.
        """
        abi = next((abi for abi in self._abis if abi.is_process(registers)), self._abis[-1])
        mask = (1 << 8 * abi.pointer_size) - 1
        names = abi.registers if abi.mode_flag is None else (*abi.registers, abi.mode_flag[0])
        known = {name: value & mask for name in names if (value := registers.get(name)) is not None}
        if abi.pc not in known or abi.sp not in known:
            return UserWalk((), UserEnd.NO_REGISTERS)
        walk = Walk(abi, self._read_word(abi, read), code, stack_top)
        back = abi.system_call_size + 1 if in_system_call else 0
        first = Activation(known, code.find_region(known[abi.pc]), interrupted=True, mode=flagged_mode(abi, known))
        return walk.run(first, back)

    def _read_word(self, abi: UserAbi, read: Callable[[int, int], bytes | None]) -> ReadWord:
        size, byteorder = abi.pointer_size, self._byteorder

        def read_word(address: int) -> int | None:
            data = read(address, size)
            return None if data is None else int.from_bytes(data, byteorder)

        return read_word


def flagged_mode(abi: UserAbi, registers: Mapping[str, int]) -> int:
    """1 where an interrupted pc is of the other instruction set."""
    return 0 if abi.mode_flag is None else int(bool(registers.get(abi.mode_flag[0], 0) & abi.mode_flag[1]))


class Walk:
    """One walk."""

    __slots__ = ("_abi", "_code", "_guessed", "_pushes", "_read_word", "_stack_top", "_unread")

    def __init__(self, abi: UserAbi, read_word: ReadWord, code: UserCode, stack_top: int | None) -> None:
        self._abi = abi
        self._read_word = read_word
        self._code = code
        self._stack_top = _ADDRESS_MASK if stack_top is None else stack_top
        self._guessed = False
        self._pushes = abi.registers[abi.return_column] == abi.pc
        self._unread: int | None = None

    def run(self, activation: Activation, back: int) -> UserWalk:
        """From the innermost frame to the end.

        back: how far before the innermost pc another row is as good, 0 where none is. glibc ends the unwind data of ``clone`` in
        front of its system call, which leaves the stack as it is, because what follows is not true of the child
        (sysdeps/unix/sysv/linux/x86_64/clone.S).
        """
        frames: list[Frame] = []
        step: Step = activation
        while isinstance(step, Activation):
            activation = step
            registers, region, interrupted, by_pointer, _has_sp, _mode = activation
            pc = registers[self._abi.pc]
            if region is None:
                frames.append(Frame(pc, pc if interrupted else pc - 1 & _ADDRESS_MASK, Space.USER, by_pointer))
                step = UserEnd.NOT_MAPPED
                continue
            address = pc - region.bias & _ADDRESS_MASK
            lookup = address if interrupted else address - 1 & _ADDRESS_MASK
            row = None if region.rows is None else region.rows.find_row(lookup)
            if row is None and back and region.rows is not None:
                row = region.rows.find_row(lookup - back)
            back = 0
            is_entry = row is None and region.is_entry(lookup, self._abi.entry_size)
            if row is None and not is_entry and region.code is not None:
                row = self._choose(region.code.find_code_rows(address, interrupted=interrupted), activation)
                if row is not None and row.is_signal:
                    # The kernel had the handler return to its beginning.
                    lookup = address
            is_start = row is None and not is_entry and not interrupted and self._is_start(region, address)
            if is_start:
                lookup = address
            start = region.rows.find_start(lookup) if region.rows is not None and isinstance(row, Row) else None
            if region.image is None:
                lookup, address, start = lookup + region.bias & _ADDRESS_MASK, pc, None
            frames.append(Frame(address, lookup, Space.USER, by_pointer, region.image, start))
            if is_start or is_entry:
                step = UserEnd.THREAD_START
            elif len(frames) >= _DEPTH_LIMIT:
                step = UserEnd.DEPTH_LIMIT
            else:
                step = self._step(activation, region, row)
        return UserWalk(tuple(frames), step, frozenset() if self._unread is None else frozenset({self._unread}))

    def _choose(self, rows: Sequence[Row], activation: Activation) -> Row | None:
        """The first of the rows out of code that leads to where a call returns, where calls push that address; else the first."""
        abi = self._abi
        if not self._pushes:
            return rows[0] if rows else None
        code = None if activation.region is None else activation.region.code
        likely: Row | None = None
        for row in rows:
            step = self._apply(row, activation)
            caller = step.region if isinstance(step, Activation) else None
            if not isinstance(step, Activation) or caller is None or caller.code is None:
                continue
            call = caller.code.find_call(step.registers[abi.pc] - caller.bias & _ADDRESS_MASK)
            if call is None:
                continue
            if caller.code is code and call.number and call.number == row.start:
                return row
            # Through a pointer, or of a function that ended with a jump to this one.
            if likely is None and (row.start is None or not call.number):
                likely = row
        return likely

    def _is_start(self, region: Region, address: int) -> bool:
        """Whether a return address in front of which there is no row is the very beginning of a function with rows."""
        row = None if self._guessed or region.rows is None else region.rows.find_row(address)
        return isinstance(row, Row) and not row.only_calls

    def _step(self, activation: Activation, region: Region, row: Row | Unread | None) -> Step:
        """From one frame to its caller, or why the walk ends here."""
        table = row if isinstance(row, Row) and row.only_calls else None
        if region.checked is not None and (row is None or table is not None):
            step = self._follow_code(activation, region.checked, table)
            if step is not None:
                return step
        if table is not None and activation.interrupted:
            return UserEnd.NO_UNWIND_INFO
        if row is None:
            return self._follow_pointer(activation)
        if row is Unread.UNREAD:
            self._unread = region.image
            return UserEnd.NO_FILE_CONTENTS
        if row.kind is RowKind.END:
            return UserEnd.THREAD_START
        if row.kind is not RowKind.CALL:
            return UserEnd.NO_UNWIND_INFO
        if not activation.has_sp and (row.register == self._abi.sp or row.expression is not None):
            return self._follow_pointer(activation)
        return self._apply(row, activation)

    def _follow_code(self, activation: Activation, code: CheckedUserCode, table: Row | None) -> Step | None:
        """The caller by the function's code, or by a row that a table has for calls; None where neither tells anything.

        A row for calls is the best there is where one was made, and the worst elsewhere.
        """
        interrupted = activation.interrupted
        address = self._code_address(activation)
        known = code.find_known_row(address, interrupted=interrupted)
        if known is not None and known.kind is RowKind.CALL:
            return self._apply(known, activation)
        if known is not None and not interrupted:
            return UserEnd.THREAD_START
        if table is not None and not interrupted:
            return self._apply(table, activation)
        failed: UserEnd | None = None
        for row in chain(code.find_rows(address, interrupted=interrupted), () if table is None else (table,)):
            step = self._apply(row, activation)
            if isinstance(step, Activation) and self._is_return(step):
                return step
            is_unreadable = step is UserEnd.UNREADABLE_MEMORY
            failed = failed or (UserEnd.UNREADABLE_MEMORY if is_unreadable else UserEnd.NO_UNWIND_INFO)
        return failed

    def _code_address(self, activation: Activation) -> int:
        """Where an activation stands in its file, odd in the other instruction set."""
        bias = 0 if activation.region is None else activation.region.bias
        return (activation.registers[self._abi.pc] - bias & _ADDRESS_MASK) | activation.mode

    def _is_return(self, activation: Activation) -> bool:
        """Whether a call may return to where an activation stands."""
        region = activation.region
        if region is None or region.checked is None:
            return True
        return region.checked.is_return(self._code_address(activation))

    def _apply(self, row: Row, activation: Activation) -> Step:
        abi, registers = self._abi, activation.registers
        cfa = find_cfa(row, registers, self._read_word)
        if isinstance(cfa, Missing):
            return UserEnd.NO_UNWIND_INFO if cfa.address is None else UserEnd.UNREADABLE_MEMORY
        if row.return_address is None and cfa - abi.pointer_size >= self._stack_top:
            return UserEnd.THREAD_START
        caller = find_caller(row, registers, cfa, abi.pointer_size, (abi.pc, abi.sp), self._read_word)
        if isinstance(caller, Missing):
            return UserEnd.NO_UNWIND_INFO if caller.address is None else UserEnd.UNREADABLE_MEMORY
        pc = caller[abi.pc] & (1 << abi.address_bits) - 1
        mode = 0
        if abi.mode_flag is not None:
            mode = flagged_mode(abi, caller) if row.is_signal else pc & 1
            pc &= ~1
        caller[abi.pc] = pc
        if row.is_signal:
            # It may lie anywhere: handlers run on stacks of their own (sigaltstack). The depth limit bounds chains of these.
            return Activation(caller, self._code.find_region(pc), interrupted=True, mode=mode)
        # glibc's vfork takes its return address off the stack into a register, so that the caller's stack pointer is its own; on
        # s390x and ppc64el a function saves its own in the caller's frame, before it makes one.
        is_in_register = row.return_address is not None and row.return_address.is_value
        may_stay = is_in_register or (activation.interrupted and (abi.sp in abi.callee_saved or abi.caller_slot is not None))
        if caller[abi.sp] < registers[abi.sp] or (caller[abi.sp] == registers[abi.sp] and not may_stay):
            return UserEnd.DID_NOT_ADVANCE
        if pc == 0:
            return UserEnd.NOT_MAPPED if self._guessed else UserEnd.THREAD_START
        caller[abi.pc] = pc = pc + abi.return_offset
        # The code that signal handlers return to may be the first of its mapping.
        region = self._code.find_region(pc - 1) or self._code.find_region(pc)
        return UserEnd.NOT_MAPPED if region is None else Activation(caller, region, mode=mode)

    def _follow_pointer(self, activation: Activation) -> Step:
        """The caller by the frame pointer, which leads to two words: the caller's frame pointer and the return address."""
        abi, registers, word = self._abi, activation.registers, self._abi.pointer_size
        sp, fp = registers[abi.sp], registers.get(abi.fp)
        if sp >= self._stack_top:
            return UserEnd.THREAD_START
        if abi.caller_slot is not None:
            return self._follow_chain(activation, sp, abi.caller_slot)
        if fp == 0:
            is_root = activation.by_pointer or self._stack_top - sp <= _ENTRY_WORDS * word
            return UserEnd.THREAD_START if is_root else UserEnd.NO_UNWIND_INFO
        record = None if fp is None else fp + abi.frame_record
        if record is None or not sp <= record < self._stack_top or record % word:
            return UserEnd.NO_UNWIND_INFO
        saved, pc = self._read_word(record), self._read_word(record + word)
        if saved is None or pc is None:
            return UserEnd.UNREADABLE_MEMORY if record - sp < _STACK_REACH else UserEnd.NO_UNWIND_INFO
        mode = 0 if abi.mode_flag is None else pc & 1
        pc &= (1 << abi.address_bits) - 1 - mode
        if saved == 0 and pc == 0 and activation.by_pointer:
            return UserEnd.THREAD_START
        region = self._code.find_region(pc - 1) if pc else None
        caller = {abi.pc: pc, abi.sp: record + 2 * word, abi.fp: saved}
        step = Activation(caller, region, by_pointer=True, has_sp=abi.has_frames_above, mode=mode)
        if region is None or not self._is_return(step):
            return UserEnd.NO_UNWIND_INFO
        self._guessed = True
        return step

    def _follow_chain(self, activation: Activation, sp: int, slot: int) -> Step:
        """The caller by the back chain, which every function with a frame keeps: only a halt may be in one without.

        slot: of the return address in the caller's frame.
        """
        abi = self._abi
        caller_sp = self._read_word(sp)
        if caller_sp is None:
            return UserEnd.UNREADABLE_MEMORY
        if caller_sp == 0:
            return UserEnd.THREAD_START
        if not sp < caller_sp < self._stack_top or caller_sp % abi.pointer_size:
            return UserEnd.NO_UNWIND_INFO
        pc = self._read_word(caller_sp + slot)
        if pc is None:
            return UserEnd.UNREADABLE_MEMORY
        region = self._code.find_region(pc - 1) if pc else None
        if region is None:
            return UserEnd.NOT_MAPPED if pc else UserEnd.THREAD_START
        return Activation({abi.pc: pc, abi.sp: caller_sp}, region, by_pointer=activation.interrupted)
