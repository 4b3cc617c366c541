"""The kernel's own top-level page table, where no symbol says which it is (no CONFIG_KALLSYMS_ALL): a page of its image.

It maps the image as the table of the vCPU does, data too (PTI's table of user mode lacks them) and itself among them, and nothing
below the kernel's half (a table for booting maps RAM there as well). One page of the image alone can be so.
"""

from __future__ import annotations

from collections.abc import Sequence

from guest.memory import Steps
from guest.paging import PAGE_SIZE, AddressSpace

_PAGES_PER_STEP = 256


def find_own_table(current: AddressSpace, image: tuple[int, int], wanted: Sequence[int], kernel_half: int) -> Steps[int | None]:
    """Its physical address, None where no page is such a table, or several are.

    image: addresses [start, end) to look at. wanted: some of the image's that it must map as ``current`` does. kernel_half: the
    lowest address of the kernel's.
    """
    expected = [(address, current.translate(address)) for address in wanted]
    found = []
    for count, page in enumerate(range(image[0] & -PAGE_SIZE, image[1], PAGE_SIZE)):
        if not count % _PAGES_PER_STEP:
            yield
        root = current.translate(page)
        if root is None:
            continue
        space = AddressSpace(current.memory, current.tables, root)
        if all(space.translate(address) == physical for address, physical in (*expected, (page, root))) and not any(
            space.mapped(0, kernel_half)
        ):
            found.append(root)
    yield
    return found[0] if len(found) == 1 else None
