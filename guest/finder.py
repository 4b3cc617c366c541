"""Guest memory and vCPU registers become the place of the running kernel.

The page tables that a vCPU uses say whether a kernel image is mapped at all, and where, wherever KASLR put it; so nothing is
searched for while firmware or a decompressor runs. The image is then known by the kallsyms tables in it. They are there from
the kernel's first instruction on and take 40 to 60 ms to find, however much RAM the guest has. Where an image has none in a
known form, VMCOREINFO says where they are: a page somewhere in RAM, written late in boot, and 50 ms to more than a second of
scanning per 512 MiB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from guest.kallsyms import KallsymsPlace, place_from_symbols
from guest.kallsyms_scan import MAX_IMAGE_SIZE, find_kallsyms
from guest.memory import PhysicalMemory, Steps
from guest.paging import AddressSpace
from guest.vmcoreinfo import VmCoreInfo, scan_vmcoreinfo
from recording.errors import UnsupportedTargetError
from unwind.arch import Architecture, Registers

_GATE_SIZE = 16
_32BIT_LIMIT = 1 << 32


@dataclass(frozen=True, slots=True)
class KernelLocation:
    """A kernel that was found.

    found_by: how, in words.
    image, image_physical: virtual and physical address of its first mapped page.
    space: page tables that map it: those of the vCPU that was looked at.
    note: its VMCOREINFO, where that was needed to find it.
    kallsyms: where its symbol tables are; None where neither the image nor the note says.
    """

    found_by: str
    image: int
    image_physical: int
    space: AddressSpace
    note: VmCoreInfo | None
    kallsyms: KallsymsPlace | None


def spaces_of(memory: PhysicalMemory, architecture: Architecture, registers: Iterable[Registers]) -> list[AddressSpace]:
    """The page tables that the vCPUs use now, each once; none for a vCPU with paging off."""
    paging = architecture.paging
    usable = [each for each in registers if paging.enabled(each)]
    roots = dict.fromkeys((root, paging.levels(each)) for each in usable for root in paging.roots(each))
    return [AddressSpace(memory, paging, root, levels) for root, levels in roots]


def find_kernel(memory: PhysicalMemory, architecture: Architecture, registers: Sequence[Registers]) -> Steps[KernelLocation | None]:
    """Find the kernel that the vCPUs run, from the registers of one halt; None while there is none.

    Raises UnsupportedTargetError for a 32-bit kernel.
    """
    if any(architecture.is_32bit_kernel(each) for each in registers):
        yield from _refuse_32bit_kernel(memory)
    for space in spaces_of(memory, architecture, registers):
        image = yield from _find_image(architecture, space)
        location = None if image is None else (yield from _identify(memory, architecture, space, image))
        if location:
            return location
    return None


def _refuse_32bit_kernel(memory: PhysicalMemory) -> Steps[None]:
    note = yield from scan_vmcoreinfo(memory, lambda note: 0 < note.symbols.get("_stext", 0) < _32BIT_LIMIT)
    if note:
        raise UnsupportedTargetError(
            f"the guest runs the 32-bit kernel {note.release}; guestprof profiles 64-bit kernels: boot a 64-bit one"
        )


def _find_image(architecture: Architecture, space: AddressSpace) -> Steps[tuple[int, int] | None]:
    """(virtual, physical) address of the kernel image that a page table maps, or None.

    The interrupt table, where there is one, points into the image; before it is set up, the first mapped page is taken.
    """
    start, end = architecture.kernel_image
    handler = _interrupt_handler(architecture, space)
    first = None
    for extent in space.mapped(start, end):
        if extent is None:
            yield
            continue
        if first is None or extent.address - first[0] > MAX_IMAGE_SIZE:
            first = extent.address, extent.physical
        if handler is None or extent.address <= handler < extent.address + extent.size:
            return first
    return None


def _interrupt_handler(architecture: Architecture, space: AddressSpace) -> int | None:
    """The first handler in the interrupt table, None where there is no table or it does not point into an image."""
    if architecture.interrupt_table is None:
        return None
    gate = space.read_many([(architecture.interrupt_table, _GATE_SIZE)])[0]
    handler = 0 if gate is None else architecture.interrupt_handler(gate)
    start, end = architecture.kernel_image
    return handler if start <= handler < end and space.translate(handler) is not None else None


def _identify(
    memory: PhysicalMemory, architecture: Architecture, space: AddressSpace, image: tuple[int, int]
) -> Steps[KernelLocation | None]:
    """What the mapped image is, or None where it gives no sign of being Linux."""
    address, physical = image
    place = yield from find_kallsyms(space, address)
    if place:
        found_by = f"page tables of a vCPU, symbol tables in the image at {address:#x}"
        return KernelLocation(found_by, address, physical, space, None, place)
    note = yield from scan_vmcoreinfo(memory, lambda note: is_note_of(note, architecture, space, address))
    if note is None:
        return None
    found_by = f"VMCOREINFO at physical {note.physical:#x}, page tables of a vCPU"
    return KernelLocation(found_by, address, physical, space, note, place_from_symbols(space, note.symbols))


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
