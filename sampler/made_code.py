"""Executable memory of no file becomes an image for each process, with the names that the program itself gave to code in it.

Such a program (a JIT compiler) writes them to ``/tmp/perf-PID.map`` (``guest/user/perf_files.py`` finds it). It goes on writing
while it runs, so the file is looked at again as long as samples meet such code, and when the recording ends.

The image's addresses are run-time ones. It begins as "[anon]", what programs without such a file keep, and is called
"[JIT] tid PID" when there is one: what perf calls it (tools/perf/util/dso.c: dso__set_basename; the pid as the guest's first pid
namespace shows it), and as with "[anon]" its code without a name counts as one function.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from guest.memory import Steps
from guest.tasks import TaskWords
from guest.user.contents import PageReader
from guest.user.files import OpenFile
from guest.user.perf_files import PerfMapFinder, PerfMapPlace, ProcessKey, drop_cut_lines, read_lines
from guest.user.perf_map import MAX_FILE, parse_perf_map
from recording.errors import GuestprofError
from recording.symbols import SymbolTable
from sampler.user_files import FileFinder

ANONYMOUS = "[anon]"
_MAX_PROCESSES = 1024
_PAUSE_NS = 1_000_000_000
"""A process' file is looked at no more often than this."""
_MAX_PAUSE_NS = 16_000_000_000
"""The pause doubles up to this while a process has no such file."""
_CAUTION = 20
"""A file that takes long to read is read less often: this is the pause, in times of what the last reading took."""


class NamedImages(Protocol):
    """Images of a recording that is being written."""

    def update_image(
        self, index: int, *, name: str | None = None, build_id: str | None = None, symbols: SymbolTable | None = None
    ) -> None:
        """See ``sampler.userspace.ImageStore``."""


@dataclass(slots=True)
class _Program:
    """A process that ran code of its own making. due_ns: not looked at again before. stamp: of the file when it was read last."""

    key: ProcessKey
    image: int
    place: PerfMapPlace | None = None
    stamp: tuple[int, int, int] | None = None
    pause_ns: int = _PAUSE_NS
    due_ns: int = 0
    is_queued: bool = False


class MadeCode:
    """The images of all code that programs made."""

    def __init__(
        self,
        images: NamedImages,
        add_image: Callable[[str], int],
        finder: FileFinder | None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """add_image: a new image by its name. finder: None where nothing but guest memory is to be used."""
        self._images = images
        self._add_image = add_image
        self._finder = finder
        self._clock = clock
        self._places: PerfMapFinder | None = None
        self._page_cache: PageReader | None = None
        self._programs: OrderedDict[tuple[int, int], _Program] = OrderedDict()
        self._jobs: deque[tuple[_Program, Steps[None]]] = deque()
        self._spent_ns = 0

    def set_kernel(self, places: PerfMapFinder | None, page_cache: PageReader | None) -> None:
        """Use what is known of a kernel that was found or read anew; what was known of its processes is forgotten."""
        self._places, self._page_cache = places, page_cache
        self._programs.clear()
        self._jobs.clear()

    def see(self, words: TaskWords) -> None:
        """A thread of a process runs now: the process is found by it from now on."""
        program = self._programs.get((words.mm, words.tgid))
        if program is not None:
            program.key = _key(words)

    def image(self, words: TaskWords) -> int:
        """The image of what a process made; its file will be looked at if that was not done lately."""
        program = self._programs.get((words.mm, words.tgid))
        if program is None:
            program = self._programs[words.mm, words.tgid] = _Program(_key(words), self._add_image(ANONYMOUS))
            if len(self._programs) > _MAX_PROCESSES:
                self._programs.popitem(last=False)
        self._programs.move_to_end((words.mm, words.tgid))
        if not program.is_queued and self._clock() >= program.due_ns:
            self._queue(program)
        return program.image

    def has_map(self, words: TaskWords) -> bool:
        """Whether the process is known to have written such a file."""
        program = self._programs.get((words.mm, words.tgid))
        return program is not None and program.stamp is not None

    @property
    def has_work(self) -> bool:
        """Whether ``step`` would do anything."""
        return bool(self._jobs)

    def finish(self) -> None:
        """Look at all files once more: the recording ends."""
        for program in self._programs.values():
            if not program.is_queued:
                self._queue(program)

    def step(self) -> None:
        """Do a few milliseconds of reading."""
        if not self._jobs:
            return
        program, work = self._jobs[0]
        began_ns = self._clock()
        is_done = True
        try:
            next(work)
            is_done = False
        except StopIteration:
            pass
        except GuestprofError:
            # Of the guest, which may be gone by now: whoever halts it next is told.
            pass
        now_ns = self._clock()
        self._spent_ns += now_ns - began_ns
        if is_done:
            self._jobs.popleft()
            program.is_queued = False
            program.due_ns = now_ns + max(program.pause_ns, _CAUTION * self._spent_ns)
            self._spent_ns = 0

    def _queue(self, program: _Program) -> None:
        if self._places is not None and self._page_cache is not None:
            program.is_queued = True
            self._jobs.append((program, self._look(program, self._places, self._page_cache)))

    def _look(self, program: _Program, places: PerfMapFinder, page_cache: PageReader) -> Steps[None]:
        """Find a process' file, and read it if it is another than the last time."""
        file = None if program.place is None else places.look(program.place)
        if file is None:
            program.place = yield from places.find(program.key)
            file = None if program.place is None else places.look(program.place)
        if file is None or program.place is None:
            program.pause_ns = min(_MAX_PAUSE_NS, 2 * program.pause_ns)
            return
        program.pause_ns = _PAUSE_NS
        identity = file.identity
        stamp = identity.inode, identity.size, identity.mtime_ns
        if stamp != program.stamp:
            text = yield from self._read(file, page_cache)
            symbols = yield from parse_perf_map(text)
            self._images.update_image(program.image, name=f"[JIT] tid {program.key.tgid}", symbols=symbols)
            program.stamp = stamp

    def _read(self, file: OpenFile, page_cache: PageReader) -> Steps[bytes]:
        """The file's text: what was written lately is in the page cache, and all of it where that is its only place."""
        text, missing = yield from read_lines(page_cache, file, MAX_FILE)
        first = max(0, file.identity.size - len(text))
        if missing and self._finder is not None:
            stored = yield from self._finder.find_file(file.identity, file.path)
            if not isinstance(stored, str):
                whole, still_missing = bytearray(text), []
                for low, high in missing:
                    data = stored.read(first + low, high - low)
                    if data is None:
                        still_missing.append((low, high))
                    else:
                        whole[low:high] = data
                    yield
                text, missing = bytes(whole), still_missing
        return drop_cut_lines(text, missing, is_cut=first > 0)


def _key(words: TaskWords) -> ProcessKey:
    return ProcessKey(words.address, words.tgid, words.mm)
