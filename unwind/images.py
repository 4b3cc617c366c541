"""A capture of a vCPU becomes the callchain of programs that the user named: kernels, unikernels, firmware, anything in ELF.

Rows come from the files, and the walk is that of user code (``unwind/user.py``), which knows no kernel. What is added here: frames
that the processor pushes when an interrupt or exception hits, of which no compiler's unwind table tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from recording.model import Callchain, Space, StackEnd, UserEnd
from unwind.arch import Architecture, ByteOrder
from unwind.capture import Capture
from unwind.rules import Missing, Row, find_caller, find_cfa
from unwind.user import Activation, Region, Step, Walk, flagged_mode
from unwind.user_abi import UserAbi

_CODE_BEFORE, _CODE_AFTER = 4, 64
"""Bytes around the pc by which a way back is known."""
_ENDS = {
    UserEnd.THREAD_START: StackEnd.TASK_ROOT,
    UserEnd.NOT_MAPPED: StackEnd.BAD_RETURN_ADDRESS,
    UserEnd.NO_UNWIND_INFO: StackEnd.NO_UNWIND_INFO,
    UserEnd.UNREADABLE_MEMORY: StackEnd.UNREADABLE_MEMORY,
    UserEnd.DID_NOT_ADVANCE: StackEnd.DID_NOT_ADVANCE,
    UserEnd.DEPTH_LIMIT: StackEnd.DEPTH_LIMIT,
}


@dataclass(frozen=True, slots=True)
class ImageCode:
    """The code of one address space.

    find_region: the piece of code at a run-time address. spaces: by image, what its frames are. abi: how the code uses the
    processor. byteorder: of its words. read: bytes of code at a run-time address, None where they are not known.
    """

    find_region: Callable[[int], Region | None]
    spaces: Mapping[int, Space]
    abi: UserAbi
    byteorder: ByteOrder
    read: Callable[[int, int], bytes | None]


@dataclass(frozen=True, slots=True)
class ImageWalk:
    """The callchain, and whether it leads through what an interrupt or exception has interrupted."""

    callchain: Callchain
    is_in_exception: bool


def unwind_image(architecture: Architecture, capture: Capture, code: ImageCode) -> ImageWalk:
    """The callchain of a vCPU that stands in the code of an image. Never raises for what a guest may hold."""
    abi = code.abi
    mask = (1 << 8 * abi.pointer_size) - 1
    names = abi.registers if abi.mode_flag is None else (*abi.registers, abi.mode_flag[0])
    known = {name: value & mask for name in names if (value := capture.registers.get(name)) is not None}
    walk = _ImageWalk(architecture, capture, code)
    found = walk.run(Activation(known, code.find_region(known[abi.pc]), interrupted=True, mode=flagged_mode(abi, known)), 0)
    frames = tuple(
        replace(frame, space=Space.KERNEL if frame.image is None else code.spaces[frame.image]) for frame in found.frames
    )
    return ImageWalk(Callchain(frames, _ENDS.get(found.end, StackEnd.NO_UNWIND_INFO)), walk.exceptions > 0)


class _ImageWalk(Walk):
    """One walk. exceptions: how many interrupts and exceptions it went through."""

    __slots__ = ("_architecture", "_capture", "_image_code", "exceptions")

    def __init__(self, architecture: Architecture, capture: Capture, code: ImageCode) -> None:
        size, byteorder = code.abi.pointer_size, code.byteorder

        def read_word(address: int) -> int | None:
            data = capture.read(address, size)
            return None if data is None else int.from_bytes(data, byteorder)

        super().__init__(code.abi, read_word, code, None)
        self._architecture = architecture
        self._capture = capture
        self._image_code = code
        self.exceptions = 0

    def _apply(self, row: Row, activation: Activation) -> Step:
        leaving = self._architecture.images.leaving
        if leaving is not None and activation.interrupted:
            pc = activation.registers[self._abi.pc]
            before, after = (
                self._image_code.read(*piece) or b"" for piece in ((pc - _CODE_BEFORE, _CODE_BEFORE), (pc, _CODE_AFTER))
            )
            row = leaving(row, activation.registers, before, after)
        step = super()._apply(row, activation)
        if row.is_signal:
            self.exceptions += isinstance(step, Activation)
            return step
        find = self._architecture.images.pushed_exception
        if find is None or row.return_address is not None or self._may_be_caller(step):
            return step
        abi, word = self._abi, self._abi.pointer_size
        cfa = find_cfa(row, activation.registers, self._read_word)
        if isinstance(cfa, Missing):
            return step
        kept = find_caller(row, activation.registers, cfa, word, (abi.pc, abi.sp), self._read_word)
        # Some exceptions push an error code, too.
        for address in (cfa - word, cfa):
            pushed = find(address, word, self._capture.registers, self._read_word)
            region = None if pushed is None else self._code.find_region(pushed[abi.pc])
            if pushed is not None and region is not None and not isinstance(kept, Missing):
                self.exceptions += 1
                return Activation({**kept, **pushed}, region, interrupted=True)
        return UserEnd.NOT_MAPPED if isinstance(step, Activation) else step

    def _may_be_caller(self, step: Step) -> bool:
        """Whether a step up led to where a call may return to, or nowhere at all."""
        if isinstance(step, UserEnd):
            return step is not UserEnd.NOT_MAPPED
        code, pc = self._architecture.kernel_code, step.registers[self._abi.pc]
        before = self._image_code.read(pc - code.call_size, code.call_size)
        return before is None or code.follows_call(before) or self._begins_function(step.region, pc)

    def _begins_function(self, region: Region | None, pc: int) -> bool:
        """Whether a function begins at an address: a scheduler may have made a new task's stack so that it returns there."""
        if region is None or region.rows is None or not isinstance(region.rows.find_row(pc - region.bias), Row):
            return False
        return region.rows.find_start(pc - region.bias) == pc - region.bias
