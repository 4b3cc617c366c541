"""What a vCPU runs before and beneath the kernel, told right after the halt, while memory still holds it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from guest.finder import spaces_of
from guest.firmware.blobs import MAX_BLOB, name_blob, parse_roms
from guest.firmware.code import CODE_SIZE, BootCode, Read
from guest.firmware.finder import BootCodeFinder
from guest.firmware.portable import Portable
from guest.kernel import Kernel
from guest.memory import Steps
from recording.errors import GuestprofError
from recording.milestones import BOOT_CODE
from recording.model import Frame, FrameKind, Image, Space
from sampler.memory import ProcessMemory
from sampler.userspace import ImageStore
from unwind.arch import Architecture
from unwind.outside import code_address

Monitor = Callable[[str], str]
"""Output of a human monitor command."""

_RETRY_NS, _LAST_RETRY_NS = 50_000_000, 3_200_000_000
"""Between two looks at a page of code that nothing names, at first and at last; twice as long each time."""
_CAUTION = 2
"""So many times as long as a search in vain took, nothing is searched for."""
_REFRESH_NS = 200_000_000
_SEARCH_NS = 1_000_000_000
_MAX_SEARCHES = 4


@dataclass(frozen=True, slots=True)
class BootPlace:
    """Where a vCPU was that ran neither kernel nor user code.

    code: the bytes there. image: of the recording, and the address in it (both 0 where image is None).
    portable: a program of UEFI whose name was not known.
    """

    address: int
    code: bytes | None
    image: int | None
    offset: int
    portable: Portable | None


class BootCodeTracker:
    """Names code from before the kernel by what memory holds at the time (``guest.firmware``). Reads QEMU's own memory only."""

    def __init__(
        self,
        architecture: Architecture,
        memory: ProcessMemory,
        monitor: Monitor,
        images: ImageStore,
        tell: Callable[[str, str], None],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """tell: takes the kind and the sentence of an event."""
        self._architecture = architecture
        self._memory = memory
        self._monitor = monitor
        self._images = images
        self._tell = tell
        self._finder = BootCodeFinder(architecture.pointer_size)
        self._known: list[BootCode] = []
        self._nameless: list[Portable] = []
        self._image_ids: dict[tuple[str, str], int] = {}
        self._tried: dict[int, int] = {}
        self._waits: dict[int, int] = {}
        self._clock = clock
        self._next_find_ns = self._next_refresh_ns = self._next_search_ns = 0
        self._searches = 0
        self._work: Steps[None] | None = None
        self._read_blobs()

    @property
    def has_work(self) -> bool:
        """Whether ``step`` would do anything."""
        return self._work is not None

    def step(self) -> bool:
        """A few milliseconds of the search for firmware volumes; whether it has just ended."""
        if self._work is None:
            return False
        try:
            next(self._work)
        except StopIteration:
            self._work = None
            return True
        return False

    def see(self, registers: Mapping[str, int], kernel: Kernel | None, now_ns: int) -> BootPlace | None:
        """Where a vCPU is, None where it runs user code or the kernel's own."""
        arch = self._architecture
        address = code_address(arch, registers)
        if arch.is_user(registers) or not self._is_outside(address, registers, kernel):
            return None
        read = self._reader(address, registers)
        code = read(address, CODE_SIZE)
        if code is None:
            return BootPlace(address, None, None, 0, None)
        found = next((code for code in reversed(self._known) if code.holds_at(address, read)), None)
        portable = next((image for image in self._nameless if image.holds_at(address, read)), None) if found is None else None
        if portable is not None and (found := self._finder.named(portable)) is not None:
            self._known.append(found)
            self._nameless.remove(portable)
        if found is None and portable is None and now_ns >= max(self._tried.get(address >> 12, 0), self._next_find_ns):
            began_ns = self._clock()
            found, portable = self._find(address, read, now_ns)
            if found is None and portable is None:
                self._next_find_ns = now_ns + _CAUTION * (self._clock() - began_ns)
        if found is None:
            return BootPlace(address, code, None, 0, portable)
        return BootPlace(address, code, self._image(found), address - found.base, None)

    def _reader(self, address: int, registers: Mapping[str, int]) -> Read:
        """Reads memory as the vCPU sees it; what is not mapped, by its physical address, which is how boot code knows its data."""
        spaces = spaces_of(self._memory, self._architecture, (registers,))
        space = next((space for space in spaces if space.translate(address) is not None), None)

        def read(at: int, size: int) -> bytes | None:
            if at < 0:
                return None
            data = None if space is None else space.read_many([(at, size)])[0]
            return self._memory.read_many([(at, size)])[0] if data is None else data

        return read

    def frame(self, place: BootPlace, kernel: Kernel | None) -> Frame | None:
        """The frame of such a place, by what is known now; None where nothing names it."""
        if place.image is not None:
            return Frame(place.offset, place.offset, Space.FIRMWARE, image=place.image)
        if place.portable is not None:
            named = self._finder.named(place.portable)
            if named is not None:
                offset = place.address - named.base
                return Frame(offset, offset, Space.FIRMWARE, image=self._image(named))
        address = None if kernel is None or place.code is None else identity_mapped(kernel, place.address, place.code)
        return None if address is None else Frame(address, address)

    def _is_outside(self, address: int, registers: Mapping[str, int], kernel: Kernel | None) -> bool:
        arch = self._architecture
        is_kernels = arch.paging.enabled(registers) if arch.spaces_overlap else arch.is_kernel_address(address)
        if not is_kernels:
            return True
        # Services of UEFI that the kernel calls are mapped into its half.
        if kernel is None or arch.spaces_overlap or not kernel.is_settled or kernel.text.contains(address):
            return False
        low, high = arch.kernel_code.module_area
        areas = ((low, high), kernel.init_text, *arch.kernel_code.entry_areas)
        return not any(start <= address < end for start, end in areas) and kernel.loaded.at(address) is None

    def _find(self, address: int, read: Read, now_ns: int) -> tuple[BootCode | None, Portable | None]:
        found = self._finder.find(address, read)
        if found is None and now_ns >= self._next_refresh_ns:
            # A BIOS makes its ROM's shadow RAM; what is mapped where has changed since the recording's start.
            self._next_refresh_ns = now_ns + _REFRESH_NS
            try:
                if self._memory.refresh(self._monitor):
                    found = self._finder.find(address, read)
            except (GuestprofError, OSError):
                pass
        if found is not None:
            self._known.append(found)
            return found, None
        wait_ns = min(2 * self._waits.get(address >> 12, _RETRY_NS // 2), _LAST_RETRY_NS)
        self._waits[address >> 12], self._tried[address >> 12] = wait_ns, now_ns + wait_ns
        portable = self._finder.nameless
        if portable is not None:
            self._nameless.append(portable)
        if portable is not None and self._work is None and now_ns >= self._next_search_ns and self._searches < _MAX_SEARCHES:
            self._searches += 1
            self._next_search_ns = now_ns + _SEARCH_NS
            self._work = self._finder.volumes.search(self._memory, self._memory.rom())
        return None, portable

    def _read_blobs(self) -> None:
        """What QEMU has loaded, as it is now: later the guest may have overwritten it."""
        try:
            roms = parse_roms(self._monitor("info roms"))
        except GuestprofError:
            return
        roms = [rom for rom in roms if rom[1] <= MAX_BLOB]
        contents = self._memory.read_many([(address, size) for address, size, _name in roms])
        named = (name_blob(rom[0], data, rom[2]) for rom, data in zip(roms, contents, strict=True) if data is not None)
        self._finder.blobs = [blob for blob in named if blob is not None]

    def _image(self, code: BootCode) -> int:
        key = code.name, code.role.value
        if key not in self._image_ids:
            self._image_ids[key] = self._images.add_image(Image(code.name, FrameKind.FIRMWARE, 0, None, (), None))
            self._tell(BOOT_CODE, f"{code.role.value}: {code.name} at {code.start:#x}, by {code.evidence}")
        return self._image_ids[key]


def identity_mapped(kernel: Kernel, address: int, code: bytes) -> int | None:
    """The kernel's own address of code that ran at a physical one, where that holds the same bytes; None where it does not."""
    start = kernel.text.ranges[0][0] if kernel.text.ranges else None
    physical = None if start is None else kernel.space.translate(start)
    if start is None or physical is None:
        return None
    virtual = start + address - physical
    return virtual if kernel.text.read(virtual, len(code)) == code else None
