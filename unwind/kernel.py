"""A capture of a vCPU becomes the callchain of the kernel that it runs, by the rows of an unwind table.

The walk is Linux' own (arch/x86/kernel/unwind_orc.c) plus what an outside observer meets and the kernel does not: it can halt
anywhere, also where the tables say nothing or something wrong (retpoline and return thunks, the first instructions of an
exception, code that alternatives have patched). Each of these cases is told by name or checked, never guessed silently; every
return address must follow a call instruction. A walk that cannot go on says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from recording.model import Callchain, Frame, StackEnd
from unwind.arch import Architecture, LinkRegister, UnwindMethod
from unwind.capture import Capture
from unwind.firmware import find_caller as find_firmwares_caller
from unwind.leaf import LinkedPlace, is_in_register
from unwind.outside import Unwound, classify_outside_kernel
from unwind.rules import Memory, Missing, ReadWord, Row, RowKind, find_caller, find_cfa, read_trap
from unwind.sources import RowSource, SymbolSource, TextSource, find_ranges

_DEPTH_LIMIT = 256
_MAX_SKIPPED_WORDS = 80
"""``FILL_RETURN_BUFFER`` pushes up to 32 return addresses at a time; more than twice that is no patched alternative."""
_NEAR = 16
_HALF_BIT = 55
"""Which half an address is in, whether it is signed or not (Arm ARM, D8.10.5)."""
_MAX_FUNCTION = 1 << 16
_MAX_PROLOGUE = 128


@dataclass(frozen=True, slots=True)
class _Place:
    """What is known of a code address; cached by address."""

    name: str
    start: int
    row: Row | None
    is_thunk: bool
    is_entry: bool


@dataclass(frozen=True, slots=True)
class _Caller:
    """The next frame's registers. ``pending`` is a call target that was pushed but not reached yet, a frame of its own.

    is_in_register: the return address was in a register, or in the caller's frame, so that the stack need not have moved.
    is_bound: whether the stack pointer is no more than a lower bound; None: as it was before.
    """

    registers: Mapping[str, int]
    interrupted: bool = False
    pending: int | None = None
    guess: bool = False
    is_in_register: bool = False
    is_bound: bool | None = None


_Step = _Caller | StackEnd


class KernelUnwinder:
    """Walks kernel stacks of one running kernel. Holds what it learned of each code address; reads nothing but the capture."""

    def __init__(
        self,
        architecture: Architecture,
        symbols: SymbolSource,
        text: TextSource,
        rows: RowSource,
        init_text: tuple[int, int] = (0, 0),
        *,
        is_settled: bool = True,
    ) -> None:
        """``init_text``: addresses [low, high) of boot code, whose bytes are gone once it has run.

        is_settled: the code is as it was read. Early in boot the kernel patches calls away (ftrace, paravirt), so that what stood
        before a return address cannot be told; then it is enough that the table has a row there.
        """
        self._architecture = architecture
        self._code = architecture.kernel_code
        self._symbols = symbols
        self._text = text
        self._rows = rows
        self._init_text = init_text
        self._is_settled = is_settled
        self._word = architecture.pointer_size
        self._places: dict[int, _Place] = {}
        self._calls: dict[int, bool] = {}
        self._frame_setters: dict[int, bool] = {}
        self._signature = self._code.signature
        self._kept = self._code.frame_code.kept if self._code.frame_code is not None else ()
        self._return_starts = self._code.task_roots | self._code.return_labels
        self._has_entry_areas = bool(self._code.entry_areas)
        image = symbols.find("_stext") if self._code.module_reach else None
        self._unknown_modules = (image.address - self._code.module_reach, image.address) if image else (0, 0)
        if self._code.has_only_code and self._code.method is not UnwindMethod.ORC:
            self._unknown_modules = self._code.module_area
        self._entry_ranges = find_ranges(symbols, (self._code.entry_text, *self._code.entry_ranges))

    def replace_modules(self, symbols: SymbolSource, text: TextSource, rows: RowSource) -> None:
        """Go on with other modules: what is known of places in the kernel's own code stays."""
        self._symbols, self._text, self._rows = symbols, text, rows
        low, high = self._code.module_area
        self._places = {address: place for address, place in self._places.items() if not low <= address < high}
        self._calls = {address: known for address, known in self._calls.items() if not low <= address < high}
        self._frame_setters.clear()

    def return_address(self, word: bytes) -> int | None:
        """The return address that a word of a stack may be, None where it can be none."""
        address = self._without_signature(int.from_bytes(word, self._architecture.byteorder))
        return address if self._is_return_address(address) else None

    def unwind(self, capture: Capture) -> Unwound:
        """The callchain of one vCPU, leaf first. Never raises for what a guest may hold."""
        registers = capture.registers
        frames: list[Frame] = []
        arch = self._architecture
        current: Mapping[str, int] = registers
        boundary = classify_outside_kernel(arch, registers)
        if boundary is not None:
            caller = find_firmwares_caller(arch, registers, capture.read)
            if caller is None:
                return boundary
            frames += boundary.callchain.frames
            current = caller
        size, byteorder = self._word, arch.byteorder

        def read_word(address: int) -> int | None:
            data = capture.read(address, size)
            return None if data is None else int.from_bytes(data, byteorder)

        interrupted, guess, only_thunks, is_bound = True, False, True, False

        def ended(end: StackEnd, user_registers: Mapping[str, int] | None = None) -> Unwound:
            return Unwound(Callchain(tuple(frames), end), user_registers, current[arch.sp])

        while True:
            pc = current[arch.pc]
            lookup_pc = pc if interrupted or self._is_start(pc, self._code.return_labels) else pc - 1
            if not interrupted and self._is_root_start(pc):
                # A new task returns to the very start of its root function; the byte before belongs to another one.
                frames.append(Frame(pc, pc, guess=guess))
                return ended(StackEnd.TASK_ROOT)
            frames.append(Frame(pc, lookup_pc, guess=guess))
            if len(frames) >= _DEPTH_LIMIT:
                return ended(StackEnd.DEPTH_LIMIT)
            place = self._place(lookup_pc)
            step = self._step(place, current, interrupted, only_thunks, is_bound, read_word)
            only_thunks = only_thunks and place.is_thunk
            if isinstance(step, StackEnd):
                return ended(step)
            if step.interrupted and arch.is_user(step.registers):
                return ended(StackEnd.USER_ENTRY, step.registers)
            if not step.is_in_register and not self._advances(current[arch.sp], step.registers[arch.sp]):
                return ended(StackEnd.DID_NOT_ADVANCE)
            if step.pending is not None:
                frames.append(Frame(step.pending, step.pending, guess=step.guess))
            current, interrupted, guess = step.registers, step.interrupted, step.guess
            is_bound = not interrupted and (is_bound if step.is_bound is None else step.is_bound)

    def _place(self, lookup_pc: int) -> _Place:
        place = self._places.get(lookup_pc)
        if place is None:
            is_known = self._is_kernel_text(lookup_pc)
            symbol = self._symbols.find_at(lookup_pc) if is_known else None
            name = symbol.name if symbol else ""
            place = self._places[lookup_pc] = _Place(
                name,
                symbol.address if symbol else lookup_pc,
                self._rows.find_row(lookup_pc) if is_known or self._may_be_module(lookup_pc) else None,
                name.startswith(self._code.thunks),
                any(low <= lookup_pc < high for low, high in self._entry_ranges),
            )
        return place

    def _step(
        self,
        place: _Place,
        registers: Mapping[str, int],
        interrupted: bool,
        only_thunks: bool,
        is_bound: bool,
        read_word: ReadWord,
    ) -> _Step:
        """From one frame to its caller, or why the walk ends here. is_bound: see ``_Caller``, of this frame."""
        if interrupted and place.is_thunk and not place.is_entry:
            return self._leave_thunk(registers, read_word)
        if interrupted and (self._is_entry_area(registers[self._architecture.pc]) or self._code.in_entry(registers)):
            return self._leave_entry(place, registers, read_word)
        row = place.row
        if row is None:
            return StackEnd.NO_UNWIND_INFO
        if row.tagged and registers.get(row.register, 0) & 1:
            row = Row(RowKind.TRAP, row.register, -1)
        match row.kind:
            case RowKind.CALL if row.otherwise is not None:
                step = self._leave_debug(row, registers, is_bound, read_word)
                own = replace(place, row=row.otherwise)
                return step or self._step(own, registers, interrupted, only_thunks, is_bound, read_word)
            case RowKind.END:
                return self._end(place, interrupted or only_thunks)
            case RowKind.UNDEFINED:
                return StackEnd.ENTRY_WINDOW if place.is_entry and (interrupted or only_thunks) else StackEnd.NO_UNWIND_INFO
            case RowKind.CALL:
                return self._leave_call(place, row, registers, interrupted, read_word)
            case RowKind.TRAP | RowKind.TRAP_PARTIAL | RowKind.TRAP_RECORD | RowKind.TRAP_PUSHED:
                # Amid code that fills a trap frame or takes it down, it is none yet, or still.
                is_window = interrupted and (row.kind in (RowKind.TRAP_RECORD, RowKind.TRAP_PUSHED) or row.is_window)
                return self._leave_entry(place, registers, read_word) if is_window else self._leave_trap(row, registers, read_word)

    def _end(self, place: _Place, interrupted: bool) -> StackEnd:
        """A table says END at the roots of stacks, and wherever entry code has no stack to speak of: the name decides."""
        if place.name in self._code.task_roots:
            return StackEnd.TASK_ROOT
        if place.name in self._code.idle_roots:
            return StackEnd.IDLE_ROOT
        if interrupted and place.is_entry:
            return StackEnd.ENTRY_WINDOW
        return StackEnd.NO_UNWIND_INFO

    def _leave_debug(self, row: Row, registers: Mapping[str, int], is_bound: bool, read_word: ReadWord) -> _Caller | None:
        """By a row of debug information; None where it leads nowhere (amid a change of stacks), or a register is not known."""
        sp = self._architecture.sp
        known = {name: value for name, value in registers.items() if name != sp} if is_bound else registers
        step = self._apply_call(row, known, read_word)
        if not isinstance(step, _Caller) or not (step.is_in_register or self._advances(registers[sp], step.registers[sp])):
            return None
        return replace(step, is_bound=False)

    def _leave_call(self, place: _Place, row: Row, registers: Mapping[str, int], interrupted: bool, read_word: ReadWord) -> _Step:
        sp = self._architecture.sp
        if row.leaf is not None and interrupted and self._is_leaf(place, registers, read_word):
            has_frame = self._has_unsaved_link(place.start, registers[self._architecture.pc])
            return self._apply_call((has_frame and row.leaf_in_frame) or row.leaf, registers, read_word)
        if not interrupted or row.register != sp or row.return_address is not None:
            return self._apply_call(row, registers, read_word)
        if place.is_entry:
            # error_entry keeps its return address in a register while it pushes the others: there is no stack to walk yet.
            step = self._apply_call(row, registers, read_word)
            return StackEnd.ENTRY_WINDOW if step is StackEnd.BAD_RETURN_ADDRESS else step
        step = self._apply_call(row, registers, read_word)
        if step is StackEnd.BAD_RETURN_ADDRESS or (isinstance(step, _Caller) and self._is_own_call(place, step.registers)):
            skipped = self._own_calls(place, registers[sp], read_word)
            if skipped:
                return self._apply_call(row, {**registers, sp: registers[sp] + skipped * self._word}, read_word)
        if step is StackEnd.BAD_RETURN_ADDRESS and self._code.method is UnwindMethod.ORC:
            pc = registers[self._architecture.pc]
            around = self._text.read(pc - 1, 2)
            pushed = 0 if around is None else self._code.pushed_words(around[:1], around[1:])
            other = self._row_around(place, pc) if not pushed else row
            if other is not None:
                step = self._apply_call(other, {**registers, sp: registers[sp] + pushed * self._word}, read_word)
                if isinstance(step, _Caller):
                    return _Caller(step.registers, guess=True)
            return StackEnd.BAD_RETURN_ADDRESS
        return step

    def _row_around(self, place: _Place, pc: int) -> Row | None:
        """The row before and behind that of ``pc``, where these two agree, close by and in one function.

        A row that differs from both may be of an alternative that is not patched in: before 5.12 the rows of
        ``FILL_RETURN_BUFFER`` in ``__switch_to_asm`` are a mixture of several.
        """
        before = next((row for at in range(pc - 1, pc - _NEAR, -1) if (row := self._place(at).row) != place.row), None)
        behind = next((row for at in range(pc + 1, pc + _NEAR) if (row := self._place(at).row) != place.row), None)
        if before is None or before != behind or before.kind is not RowKind.CALL:
            return None
        in_one = self._place(pc - _NEAR).start == place.start == self._place(pc + _NEAR).start
        return before if in_one else None

    def _own_calls(self, place: _Place, sp: int, read_word: ReadWord) -> int:
        """How many return addresses a function has pushed by calls to its own next instructions, which its row does not count.

        ``FILL_RETURN_BUFFER`` does so (arch/x86/include/asm/nospec-branch.h), patched in where the row was made for NOPs. From
        5.12 on objtool makes rows that count them.
        """
        for count in range(_MAX_SKIPPED_WORDS):
            word = read_word(sp + count * self._word)
            if word is None or not self._is_own_call(place, {self._architecture.pc: word}):
                return count
        return 0

    def _is_own_call(self, place: _Place, registers: Mapping[str, int]) -> bool:
        """Whether a return address belongs to a call of a function to its own next instructions."""
        pc = registers[self._architecture.pc]
        if not self._is_kernel_text(pc) or self._place(pc).start != place.start:
            return False
        before = self._text.read(pc - self._code.call_size, self._code.call_size)
        return before is not None and self._code.follows_own_call(before)

    def _apply_call(self, row: Row, registers: Mapping[str, int], read_word: ReadWord) -> _Step:
        arch = self._architecture
        cfa = find_cfa(row, registers, read_word)
        if isinstance(cfa, Missing):
            return StackEnd.NO_UNWIND_INFO if cfa.address is None else StackEnd.UNREADABLE_MEMORY
        caller = find_caller(row, registers, cfa, self._word, (arch.pc, arch.sp), read_word)
        if isinstance(caller, Missing):
            return StackEnd.UNREADABLE_MEMORY
        if self._signature:
            caller[arch.pc] = self._without_signature(caller[arch.pc])
        if self._is_return_address(caller[arch.pc]):
            stays = caller[arch.sp] == registers.get(arch.sp) and row.memory is Memory.NONE
            in_register = row.return_address is not None and (row.return_address.is_value or stays)
            return _Caller(caller, guess=row.guess, is_in_register=in_register, is_bound=row.is_bound or None)
        return StackEnd.BAD_RETURN_ADDRESS

    def _without_signature(self, address: int) -> int:
        """A return address of the kernel's half as it was before it was signed."""
        return address | self._signature if address >> _HALF_BIT & 1 else address

    def _is_leaf(self, place: _Place, registers: Mapping[str, int], read_word: ReadWord) -> bool:
        """Whether an interrupted function returns to the link register, see ``unwind/leaf.py``."""
        arch, link = self._architecture, self._code.link
        if link is not None and not link.name:
            return self._is_at_call(place, link, registers, read_word)
        value = None if link is None else registers.get(link.name)
        if link is None or value is None or not self._is_kernel_text(registers[arch.pc]):
            # Of code that is not known, functions cannot be told apart: the record is right at least from the caller's caller on.
            return False
        value = self._without_signature(value)
        if not self._is_return_address(value) or self._is_root_start(value):
            return self._is_root_start(value)
        caller = self._place(value - 1)
        call = self._text.read(value - link.size, link.size)
        target = None if call is None else link.target(value - link.size, call)
        recorded = read_word(registers.get(arch.fp, 0) + self._code.frame_record + self._word)
        if recorded is not None:
            recorded = self._without_signature(recorded)
        sets_frame = recorded == value and self._sets_frame(place.start, registers[arch.pc])
        return is_in_register(
            place.start, place.name, LinkedPlace(value, caller.start, caller.name, target), recorded, sets_frame=sets_frame
        )

    def _is_at_call(self, place: _Place, link: LinkRegister, registers: Mapping[str, int], read_word: ReadWord) -> bool:
        """Whether the word at the stack pointer is the return address of a function without a frame, amid which it was interrupted.

        It is where it returns to a direct call of this function, or where the function is about to return or to jump elsewhere.
        """
        word = read_word(registers[self._architecture.sp])
        if word is None or not self._is_return_address(word):
            return False
        call = self._text.read(word - link.size, link.size)
        if call is not None and link.target(word - link.size, call) == place.start:
            return True
        pc = registers[self._architecture.pc]
        around = self._text.read(pc - 1, 2)
        return around is not None and self._code.has_left_frame(around[:1], around[1:])

    def _sets_frame(self, start: int, pc: int) -> bool:
        """Whether the code of a function before a PC makes a frame record; without that code, it is taken for granted."""
        known = self._frame_setters.get(pc)
        if known is None:
            size = pc - start
            code = self._text.read(start, size) if 0 <= size <= _MAX_FUNCTION else None
            known = self._frame_setters[pc] = code is None or self._code.sets_frame(code)
        return known

    def _has_unsaved_link(self, start: int, pc: int) -> bool:
        """Whether a function has set its frame pointer before a PC, but has not saved its return address yet."""
        size = pc - start
        code = self._text.read(start, size) if 0 <= size <= _MAX_PROLOGUE else None
        return code is not None and self._code.sets_frame(code) and not self._code.saves_link(code)

    def _leave_thunk(self, registers: Mapping[str, int], read_word: ReadWord) -> _Step:
        """From a retpoline or return thunk. Its rows say nothing: on the stack are words of its own making, then perhaps the

        target that it is about to return to, then the return address that the call through it pushed.
        """
        arch, word_size = self._architecture, self._word
        sp = registers[arch.sp]
        pending = None
        for _attempt in range(4):
            word = read_word(sp)
            if word is None:
                return StackEnd.UNREADABLE_MEMORY
            sp += word_size
            place = self._place(word)
            if place.is_thunk and not place.is_entry:
                continue
            if self._is_return_address(word):
                caller = {arch.pc: word, arch.sp: sp}
                if arch.fp in registers:
                    caller[arch.fp] = registers[arch.fp]
                return _Caller(caller, pending=pending)
            if pending is None and place.row is not None and place.start == word:
                pending = word
                continue
            break
        return StackEnd.BAD_RETURN_ADDRESS

    def _leave_entry(self, place: _Place, registers: Mapping[str, int], read_word: ReadWord) -> _Step:
        """From entry code: what was interrupted, where that is still in the registers, or saved already."""
        if self._code.has_saved(registers):
            return self._leave_trap(Row(RowKind.TRAP_RECORD, self._architecture.sp), registers, read_word)
        if self._code.saved_words:
            words = ((name, read_word(address)) for name, address in self._code.saved_words.items())
            registers = {**registers, **{name: word for name, word in words if word is not None}}
        taken = self._code.taken_exception(place.name, registers[self._architecture.pc] - place.start, registers)
        return StackEnd.ENTRY_WINDOW if taken is None else _Caller(taken, interrupted=True, is_in_register=True)

    def _leave_trap(self, row: Row, registers: Mapping[str, int], read_word: ReadWord) -> _Step:
        arch, trap = self._architecture, self._code.trap
        cfa = find_cfa(row, registers, read_word)
        if isinstance(cfa, Missing):
            return StackEnd.NO_UNWIND_INFO if cfa.address is None else StackEnd.UNREADABLE_MEMORY
        layouts = [(trap.full, cfa, trap.size)]
        if row.kind is RowKind.TRAP_RECORD:
            layouts = [(trap.full, cfa - at, trap.size) for at in trap.records if not cfa - at & trap.alignment - 1]
        is_pushed = row.kind is RowKind.TRAP_PUSHED
        if is_pushed:
            layouts = [(trap.full, address, trap.size) for address in self._pushed_frames(cfa, registers)]
        if row.kind is RowKind.TRAP_PARTIAL:
            # Between `call error_entry` and the switch to the stack that it returns, the row says "partial" but everything was
            # pushed already (asm_exc_*, arch/x86/entry/entry_64.S): the selectors tell which it is.
            layouts = [(trap.partial, cfa, self._word * len(trap.partial)), (trap.full, registers[arch.sp], trap.size)]
        unreadable = False
        for layout, address, size in layouts:
            saved = read_trap(layout, address, read_word)
            if isinstance(saved, Missing):
                unreadable = True
                continue
            if not self._code.is_trap(saved) or (address != cfa and is_pushed and saved[arch.sp] != registers[arch.fp]):
                continue
            if arch.is_user(saved):
                if not self._code.is_trap_place(address + size):
                    continue
            elif not self._is_code(saved[arch.pc]) or (trap.is_pushed and saved[arch.sp] != address + size):
                continue
            if layout is trap.full and trap.is_partial(saved):
                # Those that functions leave as they were the walk has found.
                saved = {name: value for name, value in saved.items() if name not in trap.unsaved}
                saved |= {name: registers[name] for name in self._kept if name in registers}
            return _Caller(saved if layout is trap.full else {**registers, **saved}, interrupted=True)
        return StackEnd.UNREADABLE_MEMORY if unreadable else StackEnd.BAD_RETURN_ADDRESS

    def _pushed_frames(self, cfa: int, registers: Mapping[str, int]) -> list[int]:
        """Where the trap frame may be that entry code has pushed before it called a function which has no record yet, or no longer.

        Below the interrupted stack pointer, if that is the kernel's, else at the top of the task's stack.
        """
        arch, size = self._architecture, self._code.trap.size
        pushed_at = registers.get(arch.fp)
        if pushed_at is None:
            return [cfa]
        top = pushed_at if arch.is_kernel_address(pushed_at) else (cfa // arch.stack_size + 1) * arch.stack_size
        return [cfa, top - size]

    def _is_code(self, address: int) -> bool:
        low, high = self._code.module_area
        return self._is_kernel_text(address) or (self._code.has_only_code and low <= address < high) or self._may_be_module(address)

    def _may_be_module(self, address: int) -> bool:
        """Whether nothing but code lies at an address, known or not: a kernel may hide its list of modules."""
        return self._unknown_modules[0] <= address < self._unknown_modules[1]

    def _is_entry_area(self, address: int) -> bool:
        return self._has_entry_areas and any(low <= address < high for low, high in self._code.entry_areas)

    def _is_kernel_text(self, address: int) -> bool:
        return self._text.contains(address) or self._init_text[0] <= address < self._init_text[1]

    def _is_root_start(self, address: int) -> bool:
        return self._is_start(address, self._code.task_roots)

    def _is_start(self, address: int, names: frozenset[str]) -> bool:
        place = self._place(address) if names else None
        return place is not None and place.start == address and place.name in names

    def _is_return_address(self, address: int) -> bool:
        """Whether a word can be a return address: code, after a call instruction where its bytes are known.

        (They are not for modules that are gone and for boot code that was freed. An idle task's root enters C by a far return.)
        """
        known = self._calls.get(address)
        if known is not None:
            return known
        if not self._is_code(address):
            answer = False
        else:
            before = self._text.read(address - self._code.call_size, self._code.call_size)
            place = self._place(address - 1)
            is_root = self._is_start(address, self._return_starts) or place.name in self._code.idle_roots
            answer = is_root or (self._code.follows_call(before) if before is not None else not self._text.contains(address))
            if not answer and not self._is_settled:
                has_row = place.row is not None and place.row.kind not in (RowKind.END, RowKind.UNDEFINED)
                answer = (has_row or place.name in self._code.task_roots) and self._place(address).start != address
        self._calls[address] = answer
        return answer

    def _advances(self, sp: int, caller_sp: int) -> bool:
        """On one stack a caller's frame lies above; between stacks nothing can be said."""
        same_stack = sp // self._architecture.stack_size == caller_sp // self._architecture.stack_size
        return caller_sp > sp or not same_stack
