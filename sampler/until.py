"""``--until-symbol``: the function with which a recording ends, of the guest's kernel or of files that the user named.

A breakpoint is exact; what the samples show is what there is where one does not fit: a function that several files have, or that is
mapped with one page table alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from guest.elf.images import GuestImages
from guest.kernel import Kernel
from recording.errors import GuestprofError, StubError, UnsupportedTargetError
from recording.model import Callchain, FrameKind


class Breakpoints(Protocol):
    """What stops the guest at an address (``sampler.target.Target``)."""

    def set_breakpoint(self, address: int) -> None:
        """Stop it there."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A function [start, end): of a file's image at link-time addresses, of the kernel where ``image`` is None."""

    start: int
    end: int
    image: int | None


class Until:
    """The function of this name, None: nothing is waited for."""

    def __init__(self, name: str | None, target: Breakpoints) -> None:
        self.name = name
        self._target = target
        self._places: tuple[_Place, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether it is known where the function lies."""
        return bool(self._places)

    def look_in_files(self, images: GuestImages | None) -> None:
        """Take it of files of the user's. Raises UnsupportedTargetError where these are all that runs, and none has it."""
        if self.name is None or images is None:
            return
        symbols = ((index, image, image.symbols.find(self.name)) for index, image in enumerate(images.all))
        found = [(index, image, symbol) for index, image, symbol in symbols if symbol is not None]
        if not found and all(image.request.kind is FrameKind.KERNEL for image in images.all):
            raise UnsupportedTargetError(
                f"no file of --elf has a function {self.name}; check the name given to --until-symbol, or give the file that has it"
            )
        self._places = tuple(_Place(symbol.address, symbol.address + max(1, symbol.size), index) for index, _image, symbol in found)
        if len(found) == 1 and found[0][1].request.root is None:
            self._target.set_breakpoint(found[0][1].request.placed(found[0][2].address))

    def look_in_kernel(self, kernel: Kernel) -> None:
        """Take it of a kernel that was found, unless a file of the user's has it. Raises StubError where the kernel lacks it."""
        if self.name is None or any(place.image is not None for place in self._places):
            return
        symbol = kernel.symbols.find(self.name)
        if symbol is None:
            raise StubError(f"Linux {kernel.release} has no function {self.name}; check the name given to --until-symbol")
        self._places = (_Place(symbol.address, symbol.address + symbol.size, None),)
        self._target.set_breakpoint(symbol.address)

    def is_reached(self, chain: Callchain) -> bool:
        """Whether a stack goes through it."""
        return any(
            place.start <= frame.lookup_pc < place.end and place.image in (None, frame.image)
            for place in self._places
            for frame in chain.frames
        )

    def missed(self) -> GuestprofError | None:
        """What to say at the end of a recording that never came to know the function, although it saw files of the user's run."""
        if self.name is None or self.is_known:
            return None
        return UnsupportedTargetError(
            f"no file of --elf has a function {self.name}, and no Linux kernel was found that could;"
            " check the name given to --until-symbol"
        )
