"""Hand-made recordings: stacks written as names become a file, so that tests can say what totals it must have.

Each function name stands for an address in a made-up kernel; ``name@module`` for one in a module, ``name@/path`` for one in a user
file (``@/path`` for an address there that no symbol names), ``U:`` and ``F:`` for a user address of no file and a firmware address,
``?`` for a kernel address outside of everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha1
from pathlib import Path

from recording.model import (
    Callchain,
    ClockReading,
    Context,
    Event,
    Frame,
    FrameKind,
    Halt,
    Image,
    Sample,
    Space,
    StackEnd,
    SystemCall,
    Task,
    UserEnd,
)
from recording.store import RecordingWriter
from recording.symbols import SymbolTable

KERNEL_START = 0xFFFF_FFFF_8100_0000
MODULE_START = 0xFFFF_FFFF_C000_0000
UNKNOWN_PC = 0xFFFF_C900_0000_1000
USER_PC = 0x7F00_0000_1000
FILE_START = 0x1000
FIRMWARE_PC = 0xF_FFF0
MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Stack:
    """A sample to be made: on which vCPU, its frames root first and separated by blanks, how it ends, its weight."""

    frames: str
    vcpu: int = 0
    end: StackEnd = StackEnd.TASK_ROOT
    weight_ns: int = 10 * MS
    user_end: UserEnd | None = None
    task: Task | None = None
    context: Context = Context.UNKNOWN
    system_call: SystemCall | None = None


@dataclass(slots=True)
class Names:
    """Hands out addresses for names: every function is 64 bytes long. ``shown`` gives symbols other names than the stacks use."""

    kernel: list[str] = field(default_factory=list)
    modules: dict[str, list[str]] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)

    def frame(self, word: str) -> Frame:
        """A frame whose return address lies 16 bytes into the named function."""
        if word.startswith("U:"):
            pc = USER_PC + int(word.removeprefix("U:"))
            return Frame(pc, pc, Space.USER)
        if word.startswith("F:"):
            return Frame(FIRMWARE_PC, FIRMWARE_PC, Space.FIRMWARE)
        if word == "?":
            return Frame(UNKNOWN_PC, UNKNOWN_PC - 1)
        name, _, module = word.partition("@")
        names, start = self.kernel, KERNEL_START
        if module.startswith(("/", "[")):
            return self._user_frame(name, module)
        if module:
            names = self.modules.setdefault(module, [])
            start = MODULE_START + 0x10_0000 * list(self.modules).index(module)
        if name not in names:
            names.append(name)
        pc = start + 64 * names.index(name) + 16
        return Frame(pc, pc - 1)

    def _user_frame(self, name: str, path: str) -> Frame:
        """In a file whose code begins at link-time address 0x1000."""
        names = self.files.setdefault(path, [])
        index = list(self.files).index(path)
        if not name:
            return Frame(0x234, 0x233, Space.USER, image=index)
        if name not in names:
            names.append(name)
        pc = FILE_START + 64 * names.index(name) + 16
        return Frame(pc, pc - 1, Space.USER, image=index)

    def images(self) -> list[Image]:
        """The images which hold the names that were handed out: user files first, by whose numbers frames know them."""
        made = []
        for path, names in self.files.items():
            shown = [self.shown.get(word, word) for word in names]
            made.append(replace(_image(path, FrameKind.USER, FILE_START, shown), ranges=(), boot=0))
        return [*made, *self._kernel_images()]

    def _kernel_images(self) -> list[Image]:
        made = [_image("vmlinux", FrameKind.KERNEL, KERNEL_START, [self.shown.get(word, word) for word in self.kernel])]
        for index, (module, names) in enumerate(self.modules.items()):
            made.append(_image(module, FrameKind.MODULE, MODULE_START + 0x10_0000 * index, names))
        return made


def build_id_of(name: str) -> str:
    """A build ID which no other image has."""
    return sha1(name.encode(), usedforsecurity=False).hexdigest()


def _image(name: str, kind: FrameKind, start: int, names: Sequence[str]) -> Image:
    symbols = SymbolTable.from_symbols([(start + 64 * index, "t", word) for index, word in enumerate(names)])
    return Image(name, kind, 0, build_id_of(name), ((start, start + 64 * max(1, len(names))),), symbols)


META = {
    "requested_hz": 100,
    "architecture": "x86_64",
    "accelerator": "tcg",
    "kernel_release": "6.1.0-18-amd64",
    "vcpus": 2,
}


def write_recording(
    path: Path,
    halts: Sequence[Sequence[Stack]],
    names: Names | None = None,
    events: Sequence[Event] = (),
    *,
    clocks: Sequence[ClockReading] = (),
    ended: str | None = None,
) -> Path:
    """One recording: a halt each 10 ms of guest time, 0.5 ms long, with one stack a vCPU. Every tenth halt is 6 ms late."""
    known = Names() if names is None else names
    with RecordingWriter(path, clock=lambda: 0.0) as writer:
        for key, value in META.items():
            writer.set_meta(key, value)
        if ended is not None:
            writer.set_meta("ended", ended)
        for index, stacks in enumerate(halts):
            running_ns = 10 * MS * (index + 1)
            late_ns = 6 * MS if index % 10 == 9 else 20_000
            halt = writer.add_halt(Halt(running_ns + index * 500_000, running_ns, 500_000, late_ns))
            for stack in stacks:
                frames = tuple(known.frame(word) for word in reversed(stack.frames.split()))
                chain = Callchain(frames, stack.end, stack.user_end)
                writer.add_sample(Sample(halt, stack.vcpu, 0, stack.weight_ns, chain, stack.task, stack.context, stack.system_call))
        for reading in clocks:
            writer.add_clock(reading)
        for image in known.images():
            writer.add_image(image)
        writer.add_event(Event(0, "kernel-found", "found Linux 6.1.0-18-amd64"))
        for event in events:
            writer.add_event(event)
    return path
