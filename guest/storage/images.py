"""An image file → the disk that it holds: raw, or qcow2, vmdk, vdi, vhdx, vpc (VHD) through dissect.hypervisor, with backing files.

The format is the one that QEMU was told. It is guessed only where QEMU guesses too: a guest can write into a raw image whatever
would make it look like one with a backing file of the host (which is why QEMU protects the first sector of a guessed raw image).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guest.storage.device import BlockDevice, DeviceStream, FileDevice, StreamDevice
from guest.storage.drivers import guarded
from recording.errors import StorageError

_MAX_CHAIN = 32
_MAGICS = {b"QFI\xfb": "qcow2", b"KDMV": "vmdk", b"vhdx": "vhdx", b"cone": "vpc"}


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image by path. format: QEMU's name of it, None where nobody said it. backing: None where the image itself is to say it."""

    path: str
    format: str | None = None
    backing: ImageFile | None = None


def open_image(image: ImageFile, depth: int = 0) -> BlockDevice:
    """The disk that an image holds, as it is in the file now. Raises StorageError, MissingDependencyError."""
    if depth > _MAX_CHAIN:
        raise StorageError(f"{image.path} is behind more than {_MAX_CHAIN} overlays")
    file = FileDevice(Path(image.path))
    form = image.format or _guess(file)
    if form == "raw":
        # The size is asked again at every read, so it must be one that can be told.
        _ = file.size
        return file
    opener = _OPENERS.get(form)
    if opener is None:
        raise StorageError(f"the image {image.path} has the format {form}, which is not supported")
    with guarded(f"the image {image.path} ({form})"):
        stream = opener(file, image, depth)
        return StreamDevice(stream, int(stream.size))


def _guess(file: FileDevice) -> str:
    head = file.read(0, min(4, file.size))
    return _MAGICS.get(head, "raw")


def _open_qcow2(file: FileDevice, image: ImageFile, depth: int) -> Any:  # noqa: ANN401  (the library's)
    from dissect.hypervisor.disk.qcow2 import QCow2  # noqa: PLC0415  (it takes 130 ms to load)

    stream = DeviceStream(file)
    header = QCow2(stream, allow_no_backing_file=True, allow_no_data_file=True)
    if header.needs_data_file:
        raise StorageError(f"the image {image.path} keeps its data in another file, which is not supported")
    if not header.needs_backing_file:
        return header.open()
    backing = image.backing
    if backing is None:
        form = header.backing_format.lower() if header.backing_format else None
        backing = ImageFile(str(Path(image.path).parent / header.auto_backing_file.removeprefix("file:")), form)
    below = DeviceStream(open_image(backing, depth + 1))
    whole = QCow2(stream, backing_file=below)
    # The library looks whether the backing file is another qcow2 by itself; it is what we say it is.
    whole.backing_file = below
    return whole.open()


def _plain(module: str, name: str) -> Callable[[FileDevice, ImageFile, int], Any]:
    def open_it(file: FileDevice, _image: ImageFile, _depth: int) -> Any:  # noqa: ANN401  (the library's)
        from importlib import import_module  # noqa: PLC0415

        made = getattr(import_module("dissect.hypervisor.disk." + module), name)(DeviceStream(file))
        return made.open() if hasattr(made, "open") else made

    return open_it


_OPENERS: dict[str, Callable[[FileDevice, ImageFile, int], Any]] = {
    "qcow2": _open_qcow2,
    "vmdk": _plain("vmdk", "VMDK"),
    "vdi": _plain("vdi", "VDI"),
    "vhdx": _plain("vhdx", "VHDX"),
    "vpc": _plain("vhd", "VHD"),
}
