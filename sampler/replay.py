"""A recording that was made with ``--raw`` is unwound again: its captures, and what was known of the kernel, become callchains.

Nothing but the file is needed. Each capture is unwound with what it was unwound with then (``unwinders`` of
``recording/schema.py``), so the callchains differ from the recorded ones only where the unwinder itself has changed since.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from guest.debug_rows import DebugRows, PlacedTable
from guest.elf.frame_sections import abi_of
from guest.elf.images import GuestImages, ImageRequest, load_images
from guest.elf.kept import write_kept
from guest.kernel_code import KernelCodeMap, LoadedCode
from guest.text import TextImage
from recording.errors import BadImageError, BadRecordingError
from recording.model import Callchain, Frame, FrameKind, RawCapture, Sample, StackEnd, UnwindData
from recording.reader import Recording
from recording.symbols import SymbolTable
from sampler.rsp.registers import RegisterFile, RegisterLayout
from unwind.arch import Architecture
from unwind.arch.registry import find_architecture
from unwind.capture import Capture
from unwind.ehabi import EHABI_VERSION, EhabiTable
from unwind.images import unwind_image
from unwind.kernel import KernelUnwinder
from unwind.methods import frame_rows
from unwind.orc import OrcTable
from unwind.outside import classify_outside_kernel
from unwind.sources import RowSource


def replay(recording: Recording) -> Iterator[tuple[Sample, Callchain]]:
    """Each sample, in time order, and its callchain unwound anew.

    Raises BadRecordingError where the recording was not made with --raw, was killed before the kernel's code or the files of
    --elf were in it, or is damaged.
    """
    if recording.meta.get("raw") is not True:
        raise BadRecordingError(
            f"{recording.path} was not made with --raw, so its stacks cannot be unwound again; record with --raw"
        )
    architecture = find_architecture(str(recording.meta.get("architecture")))
    if architecture is None:
        raise BadRecordingError(f"{recording.path} is of an architecture that this guestprof does not know; install a newer one")
    layout = RegisterLayout.from_json(recording.meta.get("registers"))
    images = _load_images(recording, architecture)
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
        capture = to_capture(raw, layout)
        code = None if images is None else images.code_of(capture.registers)
        if code is not None:
            yield sample, unwind_image(architecture, capture, code).callchain
        else:
            yield sample, _unwind(architecture, unwinder, capture)


def _unwind(architecture: Architecture, unwinder: KernelUnwinder | None, capture: Capture) -> Callchain:
    """The callchain of one vCPU, whatever it runs; without an unwinder (no kernel was found) kernel code is its address alone."""
    if unwinder is not None:
        return unwinder.unwind(capture).callchain
    outside = classify_outside_kernel(architecture, capture.registers)
    if outside is not None:
        return outside.callchain
    pc = capture.registers[architecture.pc]
    return Callchain((Frame(pc, pc),), StackEnd.NO_KERNEL)


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


def _load_images(recording: Recording, architecture: Architecture) -> GuestImages | None:
    """The files of ``--elf``, None where there were none."""
    count = recording.meta.get("kept_files", 0)
    if not count:
        return None
    files, images = recording.kept_files(), recording.images()
    if [file.image for file in files] != list(range(len(files))) or len(files) != count or len(images) < len(files):
        raise BadRecordingError(f"{recording.path} ends before the files of --elf were written to it; record for longer")
    with tempfile.TemporaryDirectory(prefix="guestprof-") as directory:
        requests = []
        for file in files:
            path = Path(directory) / str(file.image)
            write_kept(file, path)
            requests.append(ImageRequest(path, file.bias, file.root, images[file.image].kind))
        try:
            return load_images(requests, architecture)
        except BadImageError as error:
            raise BadRecordingError(f"{recording.path} is damaged ({error}); record again") from error


def _load_unwinder(recording: Recording, architecture: Architecture, index: int) -> KernelUnwinder:
    data = recording.unwind_data(index)
    if data is None:
        raise BadRecordingError(f"{recording.path} ends before the kernel's code was written to it; record for longer")
    symbols = kernel_symbols(recording, data.boot)
    try:
        orc, ehabi = _tables(data)
        abi = abi_of(architecture, architecture.pointer_size)
        tables = [] if abi is None else [PlacedTable(each, abi) for each in data.frames]
        code = KernelCodeMap(
            symbols,
            TextImage(data.text),
            orc,
            LoadedCode.from_data(data.loaded),
            partial(frame_rows, architecture, table=ehabi),
            architecture.kernel_code.method,
            DebugRows(tables) if tables else None,
        )
    except BadImageError as error:
        raise BadRecordingError(f"{recording.path} is damaged ({error}); record again") from error
    return KernelUnwinder(architecture, code, code, code, data.init_text, is_settled=data.is_settled)
