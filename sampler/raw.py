"""What ``--raw`` keeps: captures, whatever of the kernel they are unwound with, as it was at the time, and files of the user's."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from guest.elf.images import GuestImages
from guest.elf.kept import kept_files
from guest.kernel import Kernel
from recording.model import UnwindData
from recording.store import RecordingWriter
from sampler.rsp.registers import RegisterFile
from unwind.capture import Capture


class RawKeeper:
    """Writes captures, and in small steps the user's files, and the kernel's code and unwind tables whenever they have changed."""

    def __init__(self, writer: RecordingWriter, images: GuestImages | None = None) -> None:
        """images: files of the user's whose code the guest runs, the first images of the recording; they are kept, too."""
        self._writer = writer
        self._data: UnwindData | None = None
        self._id = -1
        self._storing: deque[Iterator[None]] = deque()
        writer.set_meta("raw", value=True)
        if images is not None:
            writer.set_meta("kept_files", len(images.all))
            self._storing.extend(writer.add_kept_file(file) for file in kept_files(images))

    def kernel_changed(self, kernel: Kernel, boot: int) -> None:
        """From now on captures are unwound with this."""
        data = unwind_data(kernel, boot)
        if data != self._data:
            self._data = data
            self._id += 1
            self._storing.append(self._writer.add_unwinder(self._id, data))

    def kernel_gone(self) -> None:
        """From now on captures are not unwound."""
        self._data = None

    def add(self, halt: int, capture: Capture) -> None:
        """Keep a capture that was unwound just now."""
        if isinstance(capture.registers, RegisterFile):
            known = self._id if self._data is not None else None
            self._writer.add_capture(halt, capture.vcpu, capture.registers.raw, capture.memory, known)

    def step(self) -> bool:
        """Write a few milliseconds' worth of what is kept of the kernel; whether there was anything to write."""
        while self._storing:
            if next(self._storing[0], "done") != "done":
                return True
            self._storing.popleft()
        return False


def unwind_data(kernel: Kernel, boot: int) -> UnwindData:
    """What a kernel's stacks are unwound with, as values that a recording keeps."""
    table = kernel.orc or kernel.ehabi
    orc = None if table is None else table.to_data()
    frames = () if kernel.debug is None else tuple(placed.data for placed in kernel.debug.tables)
    return UnwindData(boot, kernel.is_settled, kernel.init_text, kernel.text.pieces, orc, kernel.loaded.to_data(), frames)
