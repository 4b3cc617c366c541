"""A recording's captures are unwound again with what the recording holds of the kernel at each time."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from guest.elf.images import ImageRequest, load_images
from guest.elf.kept import kept_files
from recording.errors import BadRecordingError
from recording.model import Callchain, Frame, FrameKind, Halt, Image, OrcData, Sample, Space, StackEnd, UnwindData
from recording.reader import Recording
from recording.store import RecordingWriter
from recording.symbols import SymbolTable
from sampler.replay import replay
from sampler.rsp.registers import RegisterLayout
from tests.builders.tiny_elf import elf
from tests.builders.tiny_kernel import CALL, STACK_TOP, TEXT, words
from unwind.arch.x86_64 import X86_64

LAYOUT = RegisterLayout.from_fixed(X86_64)
LEAF, CALLER, ROOT = TEXT, TEXT + 0x100, TEXT + 0x200
RETURN, ROOT_RETURN = CALLER + 0x20, ROOT + 0x20
SYMBOLS = SymbolTable.from_symbols([(LEAF, "t", "leaf"), (CALLER, "t", "caller"), (ROOT, "T", "ret_from_fork")])
TABLE = TEXT + 0x10_0000
ORC = OrcData(
    3,
    TABLE,
    struct.pack("<3i", *(address - TABLE - 4 * index for index, address in enumerate((LEAF, CALLER, ROOT)))),
    # sp + 8 for a function that pushed nothing; the root's row ends the stack (struct orc_entry of Linux 6.4).
    struct.pack("<hhHhhHhhH", 8, 0, 0x205, 8, 0, 0x205, 0, 0, 0x100),
)
WHOLE = Callchain((Frame(LEAF, LEAF), Frame(RETURN, RETURN - 1), Frame(ROOT_RETURN, ROOT_RETURN - 1)), StackEnd.TASK_ROOT)
CUT = Callchain((Frame(LEAF, LEAF),), StackEnd.BAD_RETURN_ADDRESS)
ADDRESS = Callchain((Frame(LEAF, LEAF),), StackEnd.NO_KERNEL)
USER = Callchain((Frame(0x40_1000, 0x40_1000, Space.USER),), StackEnd.USER_MODE)


def code(*calls: int) -> bytes:
    text = bytearray(b"\x90" * 0x300)
    for address in calls:
        text[address - TEXT - len(CALL) : address - TEXT] = CALL
    return bytes(text)


PATCHED = UnwindData(0, True, (0, 0), ((TEXT, code(RETURN, ROOT_RETURN)),), ORC)
EARLY = replace(PATCHED, text=((TEXT, code(ROOT_RETURN)),))


def registers(**values: int) -> bytes:
    raw = bytearray(LAYOUT.size)
    for name, value in values.items():
        register = LAYOUT.index[name]
        raw[register.offset : register.offset + register.size] = value.to_bytes(register.size, "little")
    return bytes(raw)


IN_KERNEL = registers(rip=LEAF, rsp=STACK_TOP - 16, cs=0x10)
IN_USER = registers(rip=0x40_1000, rsp=0x7FFD_0000_0000, cs=0x33, cr0=0x8000_0001)
STACK = ((STACK_TOP - 16, words(RETURN, ROOT_RETURN)),)


def write(path: Path, captures: list[tuple[bytes, int | None]], unwinders: list[UnwindData], **meta: object) -> Path:
    """Halt ``i`` has one sample of vCPU 0 with no frames at all, so that nothing but the capture can tell the callchain."""
    known: dict[str, object] = {"architecture": "x86_64", "registers": LAYOUT.to_json(), "raw": True}
    with RecordingWriter(path, clock=lambda: 0.0) as writer:
        for key, value in (known | meta).items():
            writer.set_meta(key, value)
        writer.add_image(Image("vmlinux", FrameKind.KERNEL, 0, None, ((TEXT, TEXT + 0x300),), SYMBOLS))
        for raw, unwinder in captures:
            halt = writer.add_halt(Halt(0, 0, 1, 0))
            writer.add_sample(Sample(halt, 0, 0, 1, Callchain((), StackEnd.NO_KERNEL)))
            writer.add_capture(halt, 0, raw, STACK, unwinder)
        for index, data in enumerate(unwinders):
            list(writer.add_unwinder(index, data))
    return path


def chains(path: Path) -> list[Callchain]:
    with Recording.open(path) as recording:
        return [chain for _sample, chain in replay(recording)]


def test_each_capture_is_unwound_with_what_it_was_unwound_with_then(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [(IN_KERNEL, None), (IN_KERNEL, 0), (IN_KERNEL, 1), (IN_USER, 1)], [EARLY, PATCHED])
    assert chains(path) == [ADDRESS, CUT, WHOLE, USER]


def test_a_kernel_that_is_not_settled_needs_no_call_before_a_return_address(tmp_path: Path) -> None:
    assert chains(write(tmp_path / "a", [(IN_KERNEL, 0)], [replace(EARLY, is_settled=False)])) == [WHOLE]


def test_a_kernel_without_a_table_is_walked_by_frame_pointers(tmp_path: Path) -> None:
    # ``leaf`` begins with no ``push %rbp``: at its first instruction the return address lies at the stack pointer.
    (chain,) = chains(write(tmp_path / "a", [(IN_KERNEL, 0)], [replace(PATCHED, orc=None)]))
    assert chain.frames[:2] == (Frame(LEAF, LEAF), Frame(RETURN, RETURN - 1))


def test_the_samples_come_with_their_callchains(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [(IN_KERNEL, 0), (IN_USER, None)], [PATCHED])
    with Recording.open(path) as recording:
        assert [sample for sample, _chain in replay(recording)] == list(recording.samples())


@pytest.mark.parametrize(
    ("meta", "unwinders", "sentence"),
    [
        ({"raw": None}, [PATCHED], "was not made with --raw, so its stacks cannot be unwound again; record with --raw"),
        ({"architecture": "z80"}, [PATCHED], "is of an architecture that this guestprof does not know; install a newer one"),
        ({}, [], "ends before the kernel's code was written to it; record for longer"),
        ({}, [replace(PATCHED, boot=1)], "is damaged (no kernel symbols of boot 1); record again"),
        ({}, [replace(PATCHED, orc=replace(ORC, version=9))], "is damaged (ORC version 9 is unknown); record again"),
        (
            {},
            [replace(PATCHED, orc=replace(ORC, entries=b"\0"))],
            "is damaged (the kernel's ORC tables do not fit together: 12 and 1 bytes); record again",
        ),
    ],
)
def test_what_cannot_be_unwound_says_why(
    tmp_path: Path, meta: dict[str, object], unwinders: list[UnwindData], sentence: str
) -> None:
    path = write(tmp_path / "a", [(IN_KERNEL, 0)], unwinders, **meta)
    with pytest.raises(BadRecordingError) as caught:
        chains(path)
    assert str(caught.value) == f"{path} {sentence}"


def test_a_capture_without_a_sample_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with RecordingWriter(path, clock=lambda: 0.0) as writer:
        for key, value in {"architecture": "x86_64", "registers": LAYOUT.to_json(), "raw": True}.items():
            writer.set_meta(key, value)
        writer.add_capture(0, 0, IN_USER, [])
    with pytest.raises(BadRecordingError, match=r"a capture belongs to no sample"):
        chains(path)


def test_code_of_files_of_the_users_is_unwound_by_what_was_kept_of_them(tmp_path: Path) -> None:
    """One frame: the file has no unwind table, and its code ends at its entry point."""
    path = tmp_path / "guest.elf"
    path.write_bytes(elf())
    images = load_images([ImageRequest(path, 0x3000)], X86_64)
    assert images is not None
    (kept,) = kept_files(images)
    assert kept.bias == 0x3000
    recorded = tmp_path / "a"
    with RecordingWriter(recorded, clock=lambda: 0.0) as writer:
        for key, value in {"architecture": "x86_64", "registers": LAYOUT.to_json(), "raw": True, "kept_files": 1}.items():
            writer.set_meta(key, value)
        writer.add_image(images.all[0].to_image())
        writer.add_sample(Sample(writer.add_halt(Halt(0, 0, 1, 0)), 0, 0, 1, Callchain((), StackEnd.NO_KERNEL)))
        writer.add_capture(0, 0, registers(rip=0x4001, rsp=STACK_TOP - 16, cs=0x10), STACK)
        list(writer.add_kept_file(kept))
    path.unlink()
    assert chains(recorded) == [Callchain((Frame(0x1001, 0x1001, image=0),), StackEnd.TASK_ROOT)]


def test_a_recording_that_was_killed_before_its_files_were_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [(IN_KERNEL, None)], [], kept_files=1)
    with pytest.raises(BadRecordingError, match=r"ends before the files of --elf were written to it; record for longer"):
        chains(path)
