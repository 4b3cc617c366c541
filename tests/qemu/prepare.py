"""The disk images that tests boot are made ahead, beside tests that do not need them: ``python -m tests.qemu.prepare``.

A test that needs one earlier waits for it. What cannot be made is told by the tests, which then skip or fail.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from recording.errors import GuestprofError
from tests.qemu.disk_guest import AMD64, ARM64, debian_disk, uboot_disk
from tests.qemu.rootfs import root_image


def main() -> None:
    """Make them."""
    makers: tuple[Callable[[], Path], ...] = (root_image, lambda: debian_disk(AMD64), lambda: debian_disk(ARM64), uboot_disk)
    for make in makers:
        try:
            print(make().name)
        except GuestprofError as error:
            print(f"prepare: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
