"""gdb's walk of a halted vCPU → the chain of return addresses by DWARF, how far it goes, and how gdb came there.

"To the end" means: the chain arrives at the assembler code that the processor enters the kernel by, or at a task's first code.
Assembler code has no DWARF, so gdb cannot go on from there and often invents more frames; these are cut off. Two places inside a
stack also have no DWARF. There gdb is handed new registers, by a rule of the kernel's source and from values of gdb's own, and the
stack counts as *helped*:

- entry code that interrupted the kernel: its stack pointer is the address of ``struct pt_regs`` (asm/ptrace.h, entry_64.S);
- the change to the interrupt stack by inline assembler: the word at that stack's top is the old stack pointer
  (asm/irq_stack.h: ``movq %rsp, (tos); movq tos, %rsp; call ...; popq %rsp``).

Of guestprof, only the registers as QEMU sent them and the distance that KASLR moved the kernel by are used.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from benchmarks._gdb import KEPT_REGISTERS, PAGE, GdbFrame, GdbWalk, ReadPage, encode_registers
from benchmarks._vmlinux import Vmlinux

_MAX_CONTEXTS = 8
_PT_REGS = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss".split()
_KERNEL_CS = 0x10
_KERNEL_HALF = 1 << 63
_STACK_TOP_WORD = 0xFF8
_STACK_SIZE = 0x4000
_FIRST_CODE = ("ret_from_fork", "ret_from_fork_asm", "secondary_startup_64", "secondary_startup_64_no_verify", "common_startup_64")


class Reach(StrEnum):
    """How far gdb came."""

    END = "end"
    HELPED = "end, with help"
    ENTRY_CODE = "the vCPU stands in entry code"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class TruthFrame:
    """A frame of gdb's. has_dwarf: whether call frame information covers it, that is, whether the next frame is more than a guess.

    is_entry: it is entry code. on_switch: it stands on the top of an interrupt stack, which DWARF does not know.
    """

    pc: int
    name: str
    has_dwarf: bool = False
    is_entry: bool = False
    on_switch: bool = False


@dataclass(frozen=True, slots=True)
class Truth:
    """gdb's chain, leaf first. where: the entry code or first code that it ends in, or the first function without DWARF
    and gdb's own reason where gdb was lost.
    """

    frames: tuple[TruthFrame, ...]
    reach: Reach
    where: str
    traps: int
    switches: int


class Walker(Protocol):
    """What walks: gdb."""

    def walk(self, registers: bytes, read_page: ReadPage) -> GdbWalk:
        """The frames of a vCPU with these registers."""
        ...


class TruthFinder:
    """Asks one gdb about one running kernel."""

    def __init__(self, gdb: Walker, vmlinux: Vmlinux, offset: int) -> None:
        """``offset``: run-time addresses minus those of vmlinux."""
        self._gdb = gdb
        self._vmlinux = vmlinux
        self._offset = offset
        bounds = [vmlinux.symbols.find(name) for name in ("__entry_text_start", "__entry_text_end")]
        self._entry_text = tuple(symbol.address for symbol in bounds if symbol)

    def find(self, registers: bytes, read_page: ReadPage) -> Truth:
        """Walk from the registers (a ``g`` reply's bytes) of a vCPU that is in kernel mode and halted."""
        (pc,) = struct.unpack_from("<Q", registers, 128)
        if self._is_entry_code(pc):
            return Truth((TruthFrame(pc, self._name(pc), is_entry=True),), Reach.ENTRY_CODE, self._name(pc), 0, 0)
        frames: list[TruthFrame] = []
        traps = switches = 0
        for _context in range(_MAX_CONTEXTS):
            walk = self._gdb.walk(registers, read_page)
            part, end = self._cut(walk.frames, read_page)
            frames += part
            if end is not None:
                saved = self._interrupted(end, read_page)
                if saved is None:
                    reach = Reach.HELPED if traps or switches else Reach.END
                    return Truth(tuple(frames), reach, self._name(end.pc - 1), traps, switches)
                registers = encode_registers(saved)
                traps += 1
                continue
            index = next((index for index, frame in enumerate(part) if frame.on_switch), None)
            if index is None:
                break
            # The frame itself comes back as the leaf of the next walk.
            del frames[len(frames) - len(part) + index :]
            registers = self._switched(walk.frames[index], read_page)
            switches += 1
        first_guess = next((frame.pc for frame in frames if not frame.has_dwarf), frames[-1].pc)
        return Truth(tuple(frames), Reach.LOST, f"{self._name(first_guess)}: {walk.stop}", traps, switches)

    def _cut(self, walked: tuple[GdbFrame, ...], read_page: ReadPage) -> tuple[list[TruthFrame], GdbFrame | None]:
        """The frames up to the end, and the one that is the end, None if gdb never gets there."""
        frames = []
        for index, frame in enumerate(walked):
            lookup_pc = frame.pc if index == 0 else frame.pc - 1
            has_dwarf = self._vmlinux.has_frame_information(lookup_pc - self._offset)
            on_switch = has_dwarf and self._saved_stack_pointer(frame.sp, read_page) is not None
            frames.append(TruthFrame(frame.pc, frame.name, has_dwarf, self._is_entry_code(lookup_pc), on_switch))
            # A new task returns to the very start of its first code; the byte before belongs to another function.
            if index and (self._starts(frame.pc) or (not has_dwarf and self._is_end(frame.pc))):
                return frames, frame
        return frames, None

    def _is_end(self, pc: int) -> bool:
        name = self._name(pc - 1)
        if self._is_entry_code(pc - 1):
            return name.startswith(("asm_", "entry_"))
        return name in _FIRST_CODE

    def _starts(self, pc: int) -> bool:
        symbol = self._vmlinux.symbols.find_at(pc - self._offset)
        return symbol is not None and symbol.address == pc - self._offset and symbol.name in _FIRST_CODE

    def _is_entry_code(self, address: int) -> bool:
        start, end = self._entry_text
        return start <= address - self._offset < end

    def _name(self, address: int) -> str:
        symbol = self._vmlinux.symbols.find_at(address - self._offset)
        return symbol.name if symbol else hex(address)

    def _interrupted(self, end: GdbFrame, read_page: ReadPage) -> dict[str, int] | None:
        """The registers of the kernel code that was interrupted, None if it was no kernel code."""
        if not self._name(end.pc - 1).startswith("asm_"):
            return None
        data = b"".join(word for i in range(len(_PT_REGS)) if (word := _read_word(end.sp + 8 * i, read_page)) is not None)
        if len(data) != 8 * len(_PT_REGS):
            return None
        saved = dict(zip(_PT_REGS, struct.unpack(f"<{len(_PT_REGS)}Q", data), strict=True))
        return {**saved, "eflags": saved["eflags"] & 0xFFFF_FFFF} if saved["cs"] == _KERNEL_CS else None

    def _switched(self, frame: GdbFrame, read_page: ReadPage) -> bytes:
        """The registers of a frame on the top of an interrupt stack, as they are once it has changed back."""
        values = dict(zip(KEPT_REGISTERS, frame.registers, strict=True))
        saved = self._saved_stack_pointer(frame.sp, read_page)
        return encode_registers({**values, "rip": frame.pc, "rsp": saved or frame.sp})

    def _saved_stack_pointer(self, sp: int, read_page: ReadPage) -> int | None:
        """What is saved at the top of an interrupt stack; None where this is no such top."""
        if sp % PAGE != _STACK_TOP_WORD or sp < _KERNEL_HALF:
            return None
        data = _read_word(sp, read_page)
        word = int.from_bytes(data, "little") if data else 0
        is_other_stack = word // _STACK_SIZE != sp // _STACK_SIZE
        return word if word >= _KERNEL_HALF and word % 8 == 0 and is_other_stack and read_page(word - word % PAGE) else None


def _read_word(address: int, read_page: ReadPage) -> bytes | None:
    """Eight aligned bytes."""
    page = read_page(address - address % PAGE) if address % 8 == 0 and address >= _KERNEL_HALF else None
    return page[address % PAGE : address % PAGE + 8] if page else None
