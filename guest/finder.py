"""Guest memory and vCPU registers become the place of the running kernel.

The page tables that a vCPU uses say whether a kernel image is mapped at all, and where, wherever KASLR put it; so nothing is
searched for while firmware or a decompressor runs. The image is then known by the kallsyms tables in it. They are there from
the kernel's first instruction on and take 40 to 60 ms to find, however much RAM the guest has. Where an image has none in a
known form, VMCOREINFO says where they are: a page somewhere in RAM, written late in boot, and 50 ms to more than a second of
scanning per 512 MiB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from guest.kallsyms import KallsymsPlace, place_from_symbols
from guest.kallsyms_scan import MAX_IMAGE_SIZE, find_kallsyms
from guest.memory import PhysicalMemory, Steps
from guest.paging import AddressSpace, Extent
from guest.vmcoreinfo import VmCoreInfo, scan_vmcoreinfo
from guest.words import Words
from recording.errors import UnsupportedTargetError
from unwind.arch import Architecture, Registers

_LARGEST_TRAMPOLINE = 1 << 16
_LARGEST_TEXT = MAX_IMAGE_SIZE // 4
_32BIT_LIMIT = 1 << 32


@dataclass(frozen=True, slots=True)
class KernelLocation:
    """A kernel that was found.

    found_by: how, in words.
    image, image_physical: virtual and physical address of its first mapped page.
    space: page tables that map it: those of the vCPU that was looked at.
    mark: what the architecture's ``image_mark`` gave.
    note: its VMCOREINFO, where that was needed to find it.
    kallsyms: where its symbol tables are; None where neither the image nor the note says.
    """

    found_by: str
    image: int
    image_physical: int
    space: AddressSpace
    note: VmCoreInfo | None
    kallsyms: KallsymsPlace | None
    mark: int | None = None


def spaces_of(memory: PhysicalMemory, architecture: Architecture, registers: Iterable[Registers]) -> list[AddressSpace]:
    """The page tables that the vCPUs use now, each once; none for a vCPU with paging off."""
    paging = architecture.paging
    usable = [each for each in registers if paging.enabled(each)]
    roots = dict.fromkeys((root, paging.tables(each)) for each in usable for root in paging.roots(each))
    return [AddressSpace(memory, tables, root) for root, tables in roots]


def find_kernel(memory: PhysicalMemory, architecture: Architecture, registers: Sequence[Registers]) -> Steps[KernelLocation | None]:
    """Find the kernel that the vCPUs run, from the registers of one halt; None while there is none.

    Raises UnsupportedTargetError for a 32-bit kernel.
    """
    if any(architecture.is_32bit_kernel(each) for each in registers):
        yield from _refuse_32bit_kernel(memory)
    looked_at = set()
    for each in filter(architecture.shows_image, registers):
        for space in spaces_of(memory, architecture, (each,)):
            mark = architecture.image_mark(each, lambda address, size, space=space: space.read_many([(address, size)])[0])  # type: ignore[misc]
            if (key := (space.root, space.tables, mark)) in looked_at:
                continue
            looked_at.add(key)
            image = yield from _find_image(architecture, space, mark)
            location = None if image is None else (yield from _identify(memory, architecture, space, image))
            if location:
                return replace(location, mark=mark)
    return None


def _refuse_32bit_kernel(memory: PhysicalMemory) -> Steps[None]:
    note = yield from scan_vmcoreinfo(memory, lambda note: 0 < note.symbols.get("_stext", 0) < _32BIT_LIMIT)
    if note:
        raise UnsupportedTargetError(
            f"the guest runs the 32-bit kernel {note.release} on a 64-bit processor, where guestprof profiles"
            " 64-bit kernels: start it with qemu-system-i386, or boot a 64-bit one"
        )


def _find_image(architecture: Architecture, space: AddressSpace, mark: int | None) -> Steps[tuple[int, int] | None]:
    """(virtual, physical) address of the kernel image that a page table maps, or None.

    The mark lies in it, or in another mapping of a few of its pages (a trampoline's); without one, the first mapped page is taken.
    The image is physically contiguous, though parts of it may be unmapped. Where the mark is a symbol, what else is mapped with the
    image (all RAM, perhaps) does not tell where it begins, but it does so not far from there.
    """
    start, end = architecture.kernel_image
    target = None if mark is None else space.translate(mark)
    if mark is not None and target is None:
        return None
    if mark is not None and architecture.is_image_in_linear_map:
        image = mark - mark % architecture.image_alignment
        physical = space.translate(image)
        return None if physical is None else (image, physical)
    if mark is not None and architecture.image_mark_symbols:
        start, end = max(start, mark - _LARGEST_TEXT), min(end, mark + _LARGEST_TEXT)
    first = None
    for extent in space.mapped(start, end):
        if extent is None:
            yield
            continue
        if first is None or extent.address - first[0] > MAX_IMAGE_SIZE or extent.physical - extent.address != first[1] - first[0]:
            first = extent.address, extent.physical
        if mark is None or target is None:
            return first
        if architecture.image_mark_symbols:
            is_here = extent.address <= mark < extent.address + extent.size
        else:
            is_here = extent.physical <= target < extent.physical + extent.size and _is_image(extent, mark)
        if is_here:
            return first
    return None


def _is_image(extent: Extent, mark: int | None) -> bool:
    """Whether an extent with the mark's page is the image itself: the trampoline maps a few pages of it once more, at the mark."""
    return extent.size > _LARGEST_TRAMPOLINE or mark is None or not extent.address <= mark < extent.address + extent.size


def _identify(
    memory: PhysicalMemory, architecture: Architecture, space: AddressSpace, image: tuple[int, int]
) -> Steps[KernelLocation | None]:
    """What the mapped image is, or None where it gives no sign of being Linux."""
    address, physical = image
    place = yield from find_kallsyms(space, address, Words.of(architecture))
    if place:
        found_by = f"page tables of a vCPU, symbol tables in the image at {address:#x}"
        return KernelLocation(found_by, address, physical, space, None, place)
    note = yield from scan_vmcoreinfo(memory, lambda note: is_note_of(note, architecture, space, address))
    if note is None:
        return None
    found_by = f"VMCOREINFO at physical {note.physical:#x}, page tables of a vCPU"
    return KernelLocation(found_by, address, physical, space, note, place_from_symbols(space, note.symbols, Words.of(architecture)))


def is_note_of(note: VmCoreInfo, architecture: Architecture, space: AddressSpace, image: int) -> bool:
    """Whether a note is that of the kernel which a page table maps, and not left over from another boot.

    Its ``_stext`` must lie in the image, and the note's own idea of where that is in RAM must be the page table's.
    """
    stext = note.symbols.get("_stext")
    if stext is None or not image <= stext < image + MAX_IMAGE_SIZE:
        return False
    physical = space.translate(stext)
    expected = architecture.image_physical(stext, note.numbers)
    return physical is not None and expected in (None, physical)
