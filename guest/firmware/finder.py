"""An address in code from before the kernel becomes the program that it is in, by what memory holds there now; or nothing."""

from __future__ import annotations

from collections.abc import Sequence

from guest.firmware.blobs import Blob, find_in_blobs
from guest.firmware.code import BootCode, Read, Role
from guest.firmware.linux import DecompressorFinder
from guest.firmware.loaders import LOADERS, find_grub_module
from guest.firmware.portable import Portable, Volumes, find_portable, linux_role, portable_code

_EFI_STUB = "Linux EFI stub"


class BootCodeFinder:
    """Knows the firmware files that QEMU has loaded, and the firmware volumes that were found."""

    def __init__(self, pointer_size: int) -> None:
        self._pointer_sizes = (pointer_size, 4) if pointer_size > 4 else (4,)
        self.blobs: Sequence[Blob] = ()
        self.volumes = Volumes()
        self._decompressors = DecompressorFinder()
        self.nameless: Portable | None = None
        """A program of UEFI that was found without a name: its volume may not have been read yet."""

    def find(self, address: int, read: Read) -> BootCode | None:
        """The program at an address."""
        self.nameless = None
        found = find_in_blobs(self.blobs, address, read)
        for find in LOADERS if found is None else ():
            found = found or find(address, read)
        found = found or self._decompressors.find(address, read)
        # Before programs of UEFI: files lie in GRUB's heap as they are on the disk.
        for size in self._pointer_sizes if found is None else ():
            found = found or find_grub_module(address, read, size)
        return found or self._find_portable(address, read)

    def named(self, image: Portable) -> BootCode | None:
        """A program of UEFI under the name that a firmware volume has for it."""
        name = self.volumes.name_of(image)
        return portable_code(image, name, Role.FIRMWARE, "the firmware volume that has the same program") if name else None

    def _find_portable(self, address: int, read: Read) -> BootCode | None:
        image = find_portable(address, read)
        if image is None:
            return None
        role = linux_role(image, read)
        if role is not None:
            return portable_code(image, _EFI_STUB, role, "its headers as a program of UEFI and as a kernel")
        if image.name == "GRUB":
            return portable_code(image, image.name, Role.BOOT_LOADER, "its header, with a section for GRUB's modules")
        if image.name:
            return portable_code(image, image.name, Role.FIRMWARE, "its debug directory")
        named = self.named(image)
        if named is None:
            self.nameless = image
        return named
