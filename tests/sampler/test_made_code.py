"""Code that programs made: an image each, named when there is a file with names, read again when that has grown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from guest.memory import Steps
from guest.tasks import TaskWords
from guest.user.contents import BytesContents, FileContents
from guest.user.files import FileIdentity
from recording.errors import GuestMemoryError
from recording.symbols import SymbolTable
from sampler.made_code import MadeCode
from tests.builders.perf_maps import TGID, JitProcess, build_jit_process

SECOND = 1_000_000_000
LINE = b"1000 10 first\n"


@dataclass
class Machine:
    """What MadeCode is given, and what it gives. text: None where the page cache has nothing. names: by image."""

    process: JitProcess = field(default_factory=build_jit_process)
    text: bytes | None = b""
    stored: bytes | None = None
    now_ns: int = 0
    names: list[str] = field(default_factory=list)
    symbols: dict[int, list[tuple[int, str]]] = field(default_factory=dict)
    reads: int = 0
    is_gone: bool = False
    page_size: int = 4096

    def write(self, text: bytes) -> None:
        self.text = text
        self.process.grow(len(text))

    def words(self, tgid: int = TGID) -> TaskWords:
        key = self.process.key
        return TaskWords(key.task, tgid, tgid, "jit", 0, 0, key.mm, key.task, 0)

    def clock(self) -> int:
        return self.now_ns

    def add_image(self, name: str) -> int:
        self.names.append(name)
        return len(self.names) - 1

    def update_image(
        self, index: int, *, name: str | None = None, build_id: str | None = None, symbols: SymbolTable | None = None
    ) -> None:
        assert build_id is None
        assert symbols is not None
        self.names[index] = name or self.names[index]
        self.symbols[index] = [(symbol.address, symbol.name) for symbol in symbols if symbol.name]

    def read_pages(self, _inode: int, indexes: Sequence[int]) -> list[bytes | None]:
        self.reads += 1
        if self.is_gone:
            raise GuestMemoryError("QEMU has ended")
        if self.text is None:
            return [None for _ in indexes]
        return [self.text[index * 4096 : (index + 1) * 4096].ljust(4096, b"\0") for index in indexes]

    def find_file(self, _identity: FileIdentity, path: str) -> Steps[FileContents | str]:
        yield
        assert path.endswith("/perf-7.map")
        return "it is not there" if self.stored is None else BytesContents(self.stored)

    def find_symbol_files(self, _build_id: str, _path: str) -> Steps[Sequence[FileContents]]:
        yield
        return ()


def made_by(machine: Machine) -> MadeCode:
    made = MadeCode(machine, machine.add_image, machine, machine.clock)
    made.set_kernel(machine.process.finder(), machine)
    return made


def run(made: MadeCode) -> None:
    while made.has_work:
        made.step()


def test_names_come_when_the_code_is_met_and_when_the_file_has_grown() -> None:
    machine = Machine()
    machine.write(LINE)
    made = made_by(machine)
    assert not made.has_work
    image = made.image(machine.words())
    assert (machine.names, made.has_map(machine.words())) == (["[anon]"], False)
    run(made)
    assert machine.names == ["[JIT] tid 1234"]
    assert machine.symbols == {image: [(0x1000, "first")]}
    assert made.has_map(machine.words())
    machine.write(LINE + b"2000 10 second\n2010 8 cut")
    assert made.image(machine.words()) == image
    # Not before a second has passed.
    assert not made.has_work
    machine.now_ns = SECOND
    made.image(machine.words())
    run(made)
    assert machine.symbols[image] == [(0x1000, "first"), (0x2000, "second"), (0x2010, "cut")]
    reads = machine.reads
    machine.now_ns = 2 * SECOND
    made.image(machine.words())
    assert made.has_work
    run(made)
    assert machine.reads == reads


def test_the_last_names_are_read_when_the_recording_ends() -> None:
    machine = Machine()
    machine.write(LINE)
    made = made_by(machine)
    image = made.image(machine.words())
    run(made)
    # The process has ended; its file is still there.
    machine.process.heap.put("task_struct", machine.process.key.task, mm=0)
    machine.write(LINE + b"2000 10 second\n")
    made.finish()
    run(made)
    assert machine.symbols[image] == [(0x1000, "first"), (0x2000, "second")]


def test_a_process_without_names_is_asked_ever_less_often() -> None:
    machine = Machine()
    dentry = machine.process.dentry
    machine.process.heap.put("dentry", dentry, d_inode=0)
    made = made_by(machine)
    asked = []
    for second in range(60):
        machine.now_ns = second * SECOND
        assert made.image(machine.words()) == 0
        if made.has_work:
            asked.append(second)
        run(made)
    assert asked == [0, 2, 6, 14, 30, 46]
    assert machine.names == ["[anon]"]
    machine.write(LINE)
    machine.process.heap.put("dentry", dentry, d_inode=machine.process.inode)
    machine.now_ns = 100 * SECOND
    made.image(machine.words())
    run(made)
    assert machine.names == ["[JIT] tid 1234"]


def test_what_the_page_cache_has_not_comes_from_storage() -> None:
    machine = Machine(stored=LINE)
    machine.write(LINE)
    machine.text = None
    made = made_by(machine)
    image = made.image(machine.words())
    run(made)
    assert machine.symbols == {image: [(0x1000, "first")]}
    machine.stored = None
    machine.write(LINE + LINE)
    machine.text = None
    made.finish()
    run(made)
    assert machine.symbols == {image: []}


def test_processes_have_images_of_their_own() -> None:
    machine = Machine()
    made = made_by(machine)
    assert [made.image(machine.words(tgid)) for tgid in (1, 2, 1, 3, 2)] == [0, 1, 0, 2, 1]
    run(made)
    assert machine.names == ["[anon]"] * 3


def test_a_guest_that_is_gone_costs_names_only() -> None:
    machine = Machine(is_gone=True)
    machine.write(LINE)
    made = made_by(machine)
    made.image(machine.words())
    run(made)
    assert machine.names == ["[anon]"]
    made.set_kernel(None, None)
    made.image(machine.words())
    made.finish()
    assert not made.has_work
