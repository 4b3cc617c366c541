from __future__ import annotations

from pathlib import Path

from guest.elf.images import ImageRequest
from recording.model import Frame, FrameKind, SourceLine, Space, StackEnd
from recording.names import Namer
from sampler.gdb.frames import Activation, GdbStack
from sampler.gdb.images import GdbImage, ImageStore
from sampler.gdb.process import Answer
from tests.sampler.gdb.transcripts import record

SYMBOLS = {
    0x1A: "shared + 10 in section .text",
    0x7F: "beta + 7 in section .text of /src/w.elf",
    0x50: "alpha in section .text of /src/w.elf",
    0x900: "init<int>(a b) + 256 in section .init.text of /lib/drivers module.ko",
}


class FakeGdb:
    """Answers ``info symbol``."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def run(self, commands: list[str]) -> list[Answer]:
        self.asked += commands
        return [self._answer(command) for command in commands]

    @staticmethod
    def _answer(command: str) -> Answer:
        address = int(command.rpartition(" ")[2].rstrip('"'), 16)
        said = SYMBOLS.get(address, f"No symbol matches {address:#x}.")
        return Answer(command, record("1^done"), (record(f'~"{said}\\n"'),))


def activation(pc: int, lookup_pc: int, *names: str) -> Activation:
    return Activation(pc, lookup_pc, tuple(SourceLine(name, "/src/w.c", 10 + place) for place, name in enumerate(names)))


def test_frames_are_of_the_file_that_gdb_names_and_are_asked_for_once() -> None:
    gdb = FakeGdb()
    store = ImageStore(gdb, [ImageRequest(Path("/src/w.elf"))])
    leaf, caller = activation(0x1A, 0x1A, "shared"), activation(0x80, 0x7F, "helper", "beta")
    module, nothing = activation(0x901, 0x900, "init<int>"), Activation(0x5000, 0x4FFF, ())
    stack = GdbStack((leaf, caller, module, nothing), StackEnd.NO_UNWIND_INFO)
    store.learn([stack, stack])
    assert len(gdb.asked) == 3
    store.learn([stack])
    assert len(gdb.asked) == 3
    assert store.callchain(stack).frames == (
        Frame(0x1A, 0x1A, image=0),
        Frame(0x80, 0x7F, image=0),
        Frame(0x901, 0x900, image=1),
        Frame(0x5000, 0x4FFF),
    )
    namer = Namer(store.as_images())
    named = [namer.name(frame, 0) for frame in store.callchain(stack).frames]
    assert [(each.name, each.offset, each.module) for each in named] == [
        ("shared", 10, "w.elf"),
        ("beta", 8, "w.elf"),
        ("init<int>", 0x101, "drivers module.ko"),
        ("0x5000", None, "[unknown]"),
    ]
    assert store.images[0].lines == {0x1A: leaf.lines, 0x7F: caller.lines}


def test_functions_within_each_other_have_their_names() -> None:
    # A local function without a symbol of its own: gdb's nearest symbol is of the one before it.
    image = GdbImage(ImageRequest(Path("/src/w.elf")), 0)
    image.functions.update({0x110: ("outer", 0x100), 0x120: ("local", 0x100), 0x130: ("outer", 0x100), 0x140: ("outer", 0x100)})
    symbols = image.symbols()
    found = [symbols.find_at(address) for address in (0x110, 0x120, 0x130, 0x140)]
    assert [None if each is None else each.name for each in found] == ["outer", "local", "outer", "outer"]
    assert [each.address for each in symbols] == [0x100, 0x120, 0x130]


def test_frames_of_a_file_that_was_moved_are_at_its_own_addresses() -> None:
    store = ImageStore(FakeGdb(), [ImageRequest(Path("/src/w.elf"), 0x10, kind=FrameKind.FIRMWARE)])
    stack = GdbStack((activation(0x80, 0x7F, "helper", "beta"),), StackEnd.TASK_ROOT)
    store.learn([stack])
    assert store.callchain(stack).frames == (Frame(0x70, 0x6F, Space.FIRMWARE, image=0),)
    assert [(each.address, each.name) for each in store.images[0].symbols()] == [(0x68, "beta")]
    assert list(store.images[0].lines) == [0x6F]
    assert store.as_images()[0].kind is FrameKind.FIRMWARE
