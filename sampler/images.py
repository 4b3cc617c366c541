"""vCPUs that run code of the files that the user named (``--elf``): what is copied of their stacks, and their callchains.

No kernel tells how far a stack reaches. What is copied ends with the segment of a file that the stack is in, and is RAM in any
case: reading a device's registers may change its state.
"""

from __future__ import annotations

from collections.abc import Sequence

from guest.elf.images import GuestImage, GuestImages
from guest.memory import PhysicalMemory
from guest.paging import AddressSpace, linear_address
from recording.model import Callchain, Context, Space
from sampler.halt import HaltedState, Read
from unwind.arch import Architecture, Registers
from unwind.capture import Capture
from unwind.images import unwind_image

_PAGE = 4096
_COPIED = 32768
"""Bytes of a stack that are copied at most where that costs no time to speak of."""
_COPIED_BY_STUB = 8192
_RED_ZONE = 128
_CODE_BEFORE = 4
_CHECKS = 8
"""How often the build ID of a file is looked for in the guest's memory: it may not be there at once."""
_CONTEXTS = {Space.KERNEL: Context.KERNEL_THREAD, Space.USER: Context.USER, Space.FIRMWARE: Context.FIRMWARE}

Piece = tuple[int, bytes]


class ImageStacks:
    """Plans the reads of such stacks in each halt, and walks them."""

    def __init__(self, architecture: Architecture, memory: PhysicalMemory, images: GuestImages, *, can_peek: bool) -> None:
        """can_peek: ``memory`` may be read while the guest stands still at no cost to speak of."""
        self.images = images
        self._architecture = architecture
        self._memory = memory
        self._can_peek = can_peek
        self._ram = tuple(memory.ram())
        self.copied: dict[int, list[Piece]] = {}
        """By vCPU: (virtual address, bytes), of the halt at hand."""
        self.has_seen = False
        self._unchecked = dict.fromkeys(range(len(images.all)), _CHECKS)

    def claims(self, registers: Registers) -> bool:
        """Whether a vCPU runs code of a file."""
        return self.images.code_of(registers) is not None

    def find_other_build(self, registers: Registers) -> tuple[GuestImage, str] | None:
        """The file whose code a vCPU runs and the build ID that it has in the guest's memory, where that is not the file's.

        It is told once. No answer where the guest has no build ID in memory at the place where the file has it.
        """
        code = self.images.code_of(registers) if self._unchecked else None
        region = None if code is None else code.find_region(registers[self._architecture.pc])
        index = None if region is None else region.image
        if index is None or index not in self._unchecked:
            return None
        image = self.images.all[index]
        notes = image.build_notes()
        data = None if notes is None else self._read(*notes, registers)
        self._unchecked[index] -= 1
        if notes is None or self._unchecked[index] == 0 or (data is not None and image.has_build(data)):
            del self._unchecked[index]
        other = None if data is None else image.other_build(data)
        return None if other is None else (image, other)

    def _read(self, address: int, size: int, registers: Registers) -> bytes | None:
        """The guest's memory at a virtual address, where it is RAM."""
        spaces, pieces = self._spaces(registers), []
        while size > 0:
            length = min(size, _PAGE - address % _PAGE)
            physical = self._physical(address, registers, spaces)
            if physical is None or not any(low <= physical and physical + length <= high for low, high in self._ram):
                return None
            pieces.append((physical, length))
            address, size = address + length, size - length
        found = self._memory.read_many(pieces)
        return None if None in found else b"".join(piece for piece in found if piece is not None)

    def plan(self, state: HaltedState) -> list[Read]:
        """The reads of a halt; what can be had without is in ``copied``."""
        self.copied = {}
        reads: list[Read] = []
        for vcpu, registers in zip(state.vcpus, state.registers, strict=True):
            if self.claims(registers):
                self.has_seen = True
                reads += self._plan_stack(vcpu, registers)
        return reads

    def _plan_stack(self, vcpu: int, registers: Registers) -> list[Read]:
        sp = registers[self._architecture.sp]
        end = min(self.images.segment_end(sp) or 1 << 64, sp + (_COPIED if self._can_peek else _COPIED_BY_STUB), 1 << 64)
        spaces = self._spaces(registers)
        reads: list[Read] = []
        start = max(0, sp - _RED_ZONE)
        while start < end:
            stop = min(end, (start // _PAGE + 1) * _PAGE)
            physical = self._physical(start, registers, spaces)
            if physical is None or not any(low <= physical and physical + stop - start <= high for low, high in self._ram):
                break
            if self._can_peek:
                data = self._memory.read_many([(physical, stop - start)])[0]
                if data is not None:
                    self.copied.setdefault(vcpu, []).append((start, data))
            else:
                reads.append(Read(vcpu, start, stop - start))
            start = stop
        return reads

    def _spaces(self, registers: Registers) -> Sequence[AddressSpace]:
        """The page tables that are in use."""
        arch, find = self._architecture, self._architecture.images.roots
        if find is None or not arch.paging.enabled(registers):
            return ()
        return [AddressSpace(self._memory, arch.paging.tables(registers), root) for root in find(registers)]

    def _physical(self, address: int, registers: Registers, spaces: Sequence[AddressSpace]) -> int | None:
        """Where an address lies: where there are no page tables that are known, what the processor maps by itself, or the same."""
        if not spaces:
            linear = linear_address(self._architecture.paging.tables(registers), address)
            return address if linear is None else linear
        return next((physical for space in spaces if (physical := space.translate(address)) is not None), None)

    def walk(self, capture: Capture) -> tuple[Callchain, Context] | None:
        """The callchain of a vCPU that runs code of a file and what it was doing, None where it runs other code."""
        code = self.images.code_of(capture.registers)
        if code is None:
            return None
        walk = unwind_image(self._architecture, capture, code)
        pc = capture.registers[self._architecture.pc]
        before = code.read(pc - _CODE_BEFORE, _CODE_BEFORE)
        if before is not None and self._architecture.images.is_waiting(capture.registers, before):
            return walk.callchain, Context.IDLE
        if walk.is_in_exception:
            return walk.callchain, Context.EXCEPTION
        return walk.callchain, _CONTEXTS[walk.callchain.frames[0].space]
