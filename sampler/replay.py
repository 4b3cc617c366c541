"""A recording that was made with ``--raw`` is unwound again: its captures, and what was known of the kernel, become callchains.

Nothing but the file is needed. Each capture is unwound with what it was unwound with then (``unwinders`` of
``recording/schema.py``), so the callchains differ from the recorded ones only where the unwinder itself has changed since.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from guest.kernel_code import KernelCodeMap, LoadedCode
from guest.text import TextImage
from recording.errors import BadImageError, BadRecordingError
from recording.model import Callchain, FrameKind, RawCapture, Sample, UnwindData
from recording.reader import Recording
from recording.symbols import SymbolTable
from sampler.rsp.registers import RegisterFile, RegisterLayout
from unwind.arch import Architecture
from unwind.arch.registry import find_architecture
from unwind.capture import Capture
from unwind.ehabi import EHABI_VERSION, EhabiTable
from unwind.kernel import KernelUnwinder, unwind_capture
from unwind.methods import frame_rows
from unwind.orc import OrcTable
from unwind.sources import RowSource


def replay(recording: Recording) -> Iterator[tuple[Sample, Callchain]]:
    """Each sample, in time order, and its callchain unwound anew.

    Raises BadRecordingError where the recording was not made with --raw, was killed before the kernel's code was in the file,
    or is damaged.
    """
    if recording.meta.get("raw") is not True:
        raise BadRecordingError(
            f"{recording.path} was not made with --raw, so its stacks cannot be unwound again; record with --raw"
        )
    architecture = find_architecture(str(recording.meta.get("architecture")))
    if architecture is None:
        raise BadRecordingError(f"{recording.path} is of an architecture that this guestprof does not know; install a newer one")
    layout = RegisterLayout.from_json(recording.meta.get("registers"))
    samples = {(sample.halt, sample.vcpu): sample for sample in recording.samples()}
    unwinders: dict[int, KernelUnwinder] = {}
    for raw in recording.captures():
        sample = samples.get((raw.halt, raw.vcpu))
        if sample is None:
            raise BadRecordingError(f"{recording.path} is damaged (a capture belongs to no sample); record again")
        unwinder = None
        if raw.unwinder is not None:
            unwinder = unwinders.get(raw.unwinder)
            if unwinder is None:
                unwinder = unwinders[raw.unwinder] = _load_unwinder(recording, architecture, raw.unwinder)
        yield sample, unwind_capture(architecture, unwinder, to_capture(raw, layout))


def to_capture(raw: RawCapture, layout: RegisterLayout) -> Capture:
    """A raw capture as the unwinder takes it. A register that the stub did not have is 0."""
    return Capture(raw.vcpu, RegisterFile.from_raw(layout, raw.registers), raw.memory)


def kernel_symbols(recording: Recording, boot: int) -> SymbolTable:
    """The code symbols of a boot's kernel. Raises BadRecordingError where the recording has none."""
    for image in recording.images():
        if image.kind is FrameKind.KERNEL and image.boot == boot and image.symbols is not None:
            return image.symbols
    raise BadRecordingError(f"{recording.path} is damaged (no kernel symbols of boot {boot}); record again")


def find_rows(architecture: Architecture, data: UnwindData, symbols: SymbolTable) -> RowSource:
    """The unwind rows of a kernel: its ORC table, else what its code says. Raises BadImageError for a table that is damaged."""
    orc, ehabi = _tables(data)
    return frame_rows(architecture, symbols, TextImage(data.text), ehabi) if orc is None else orc


def _tables(data: UnwindData) -> tuple[OrcTable | None, EhabiTable | None]:
    """The kernel's unwind table, of one kind or the other."""
    if data.orc is None:
        return None, None
    if data.orc.version == EHABI_VERSION:
        return None, EhabiTable.from_data(data.orc)
    return OrcTable.from_data(data.orc), None


def _load_unwinder(recording: Recording, architecture: Architecture, index: int) -> KernelUnwinder:
    data = recording.unwind_data(index)
    if data is None:
        raise BadRecordingError(f"{recording.path} ends before the kernel's code was written to it; record for longer")
    symbols = kernel_symbols(recording, data.boot)
    try:
        orc, ehabi = _tables(data)
        code = KernelCodeMap(
            symbols, TextImage(data.text), orc, LoadedCode.from_data(data.loaded), partial(frame_rows, architecture, table=ehabi)
        )
    except BadImageError as error:
        raise BadRecordingError(f"{recording.path} is damaged ({error}); record again") from error
    return KernelUnwinder(architecture, code, code, code, data.init_text, is_settled=data.is_settled)
