"""What a kernel had loaded goes into a raw recording and comes out again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from recording.errors import BadRecordingError
from recording.loaded import from_pieces, to_pieces
from recording.model import FrameData, FrameKind, LoadedData, OrcData, UnwindData
from recording.reader import Recording
from recording.store import RecordingWriter
from recording.symbols import SymbolTable

BASE = 0xFFFF_FFFF_C000_0000
MODULE = LoadedData(
    "virtio_blk",
    FrameKind.MODULE,
    ((BASE, BASE + 0x1000), (BASE + 0x8000, BASE + 0x8100)),
    ((BASE, b"\x90" * 0x1000), (BASE + 0x8000, b"\xcc" * 0x100)),
    OrcData(3, BASE + 0x20000, b"place", b"entry!"),
    SymbolTable.from_symbols([(BASE, "t", "probe"), (BASE + 0x8000, "t", "init")]),
)
PROGRAM = LoadedData("bpf_prog_1_a", FrameKind.BPF, ((BASE + 0x9000, BASE + 0x9010),), (), None, None, True)
TRAMPOLINE = LoadedData(
    "ftrace_trampoline", FrameKind.KERNEL, ((BASE + 0xA000, BASE + 0xA040),), ((BASE + 0xA000, bytes(64)),), None, None, False, 7
)


FRAMES = (
    FrameData(b"\x14\0" * 50_000, 0, True, "big", ((BASE, BASE + 0x1000, 0x20_0000), (BASE + 0x2000, BASE + 0x3000, 0))),
    FrameData(b"table", BASE, False, "little", ()),
)


def plain(loaded: tuple[LoadedData, ...]) -> list[tuple[object, ...]]:
    """Values that compare: a symbol table as its symbols."""
    return [
        (
            each.name,
            each.kind,
            each.ranges,
            each.text,
            each.orc,
            each.symbols and list(each.symbols),
            each.has_frame_pointer,
            each.copy_of,
        )
        for each in loaded
    ]


def test_it_comes_out_as_it_went_in(tmp_path: Path) -> None:
    loaded = (MODULE, PROGRAM, TRAMPOLINE)
    path = tmp_path / "a.guestprof"
    with RecordingWriter(path, clock=time.monotonic) as writer:
        for index, (each, frames) in enumerate([(loaded, FRAMES), ((), ())]):
            for _step in writer.add_unwinder(index, UnwindData(0, True, (1, 2), ((0x1000, b"code"),), None, each, frames)):
                pass
    with Recording.open(path) as recording:
        first, second = recording.unwind_data(0), recording.unwind_data(1)
    assert first is not None
    assert second is not None
    assert plain(first.loaded) == plain(loaded)
    assert (first.frames, second.frames) == (FRAMES, ())
    assert second.loaded == ()
    assert first.text == second.text == ((0x1000, b"code"),)


@pytest.mark.parametrize("lost", ["loaded_text_1", "loaded_orc_ip", "loaded_orc"])
def test_a_lost_piece_is_damage(lost: str) -> None:
    pieces = {(name, part): (address, data) for name, part, address, data in to_pieces((MODULE,)) if name != lost}
    with pytest.raises(KeyError):
        from_pieces(pieces)


def test_damaged_symbols_are_damage() -> None:
    pieces = {(name, part): (address, data) for name, part, address, data in to_pieces((MODULE,))}
    pieces["loaded_symbols", 0] = (0, b"nothing")
    with pytest.raises(BadRecordingError):
        from_pieces(pieces)
