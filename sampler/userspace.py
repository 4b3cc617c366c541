"""What the guest's processes have mapped becomes code that a user stack can be walked through, file by file.

A process' mappings are read right after the halt that saw it run; the files behind them (``sampler/user_files.py``) are shared by
all processes, and read in small steps between samples. Stacks that met what was not known yet are walked again when it is.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from guest.elf.cache import ElfCache
from guest.kernel import Kernel
from guest.memory import PhysicalMemory, Steps
from guest.paging import AddressSpace
from guest.tasks import TaskWords
from guest.user.contents import PAGE_SIZE, BytesContents, PagePool, ProcessContents
from guest.user.mappings import FileIdentity, Mapping, MappingReader, Mappings
from guest.user.page_cache import PageCache
from guest.user.perf_files import PerfMapFinder
from recording.errors import BadImageError, GuestMemoryError
from recording.model import FrameKind, Image, UserEnd
from recording.symbols import SymbolTable
from sampler.budget import HaltBudget
from sampler.made_code import ANONYMOUS, MadeCode
from sampler.user_files import FileFinder, UserFile, UserFileReader
from unwind.arch import Architecture, Registers
from unwind.capture import Capture
from unwind.checked_rows import CheckedCodeRows
from unwind.user import Region, UserUnwinder, UserWalk

_MAX_PROCESSES = 4096
_VDSO = "[vdso]"
_SIGNAL_PAGE = "[sigpage]"
_SHARED_MEMORY = ("/memfd:", "/dev/zero", "/SYSV")
"""Memory that may be mapped twice, to be written and to be run, which are files to the kernel only."""
_MAX_VDSO = 1 << 16
_LOOKS_TO_FORGET = 64
"""After so many readings of mappings, pages of files that were not in memory are looked for again."""


class ImageStore(Protocol):
    """Where images go: a recording that is being written."""

    def add_image(self, image: Image) -> int:
        """Keep an image; its index."""

    def update_image(
        self, index: int, *, name: str | None = None, build_id: str | None = None, symbols: SymbolTable | None = None
    ) -> None:
        """Complete an image that was added before."""


class ProcessCode:
    """What a process had mapped when a sample saw it, as ``unwind.user.UserCode``."""

    def __init__(
        self, mappings: Mappings, file_of: Callable[[Mapping], UserFile | int], shared: Callable[[], Region | None]
    ) -> None:
        """``file_of``: the file of an executable mapping, or the image that stands for memory of no file.

        shared: the kernel's code that all processes may call.
        """
        self._shared = shared
        self._mappings = mappings
        self._file_of = file_of
        self.stack_top = mappings.stack_top
        self._regions: dict[int, Region] = {}

    def find_region(self, address: int) -> Region | None:
        """The executable mapping at an address."""
        mapping = self._mappings.find(address)
        if mapping is None or not mapping.is_executable:
            shared = self._shared()
            return shared if shared is not None and shared.start <= address < shared.end else None
        known = self._regions.get(mapping.start)
        if known is not None:
            return known
        file = self._file_of(mapping)
        if not isinstance(file, UserFile):
            return Region(mapping.start, mapping.end, 0, file)
        bias = file.bias(mapping.start, mapping.offset)
        code = None if file.code is None else file
        region = Region(mapping.start, mapping.end, bias, file.image, file, file.entry, code, file.checked)
        if file.elf is not None:
            self._regions[mapping.start] = region
        return region


@dataclass(slots=True)
class _Process:
    stamp: tuple[int, ...] | None
    code: ProcessCode


class UserSpaces:
    """All user code of one recording."""

    def __init__(
        self,
        architecture: Architecture,
        memory: PhysicalMemory,
        images: ImageStore,
        finder: FileFinder | None,
        cache: ElfCache,
        tell: Callable[[str, str], None],
    ) -> None:
        """finder: None where nothing but guest memory is to be used. tell: takes the kind and the sentence of an event."""
        self._architecture = architecture
        self._memory = memory
        self._images = images
        self._tell = tell
        self._unwinder = UserUnwinder(architecture)
        self._reader = UserFileReader(architecture, finder, cache)
        self._pages = PagePool()
        self._kernel: Kernel | None = None
        self._boot = 0
        self._mappings: MappingReader | None = None
        self._page_cache: PageCache | None = None
        self._processes: OrderedDict[int, _Process] = OrderedDict()
        self._shared: Region | None = None
        self._signal_page: bytes | None = None
        self._files: dict[tuple[object, ...], UserFile] = {}
        self._uncached: list[tuple[UserFile, FileIdentity]] = []
        """Files that were read while it was not known where the page cache is."""
        self._plain: dict[str, int] = {}
        self._jobs: deque[tuple[UserFile, Steps[None]]] = deque()
        self._looks = 0
        self._budget = HaltBudget.of(memory)
        self._made = MadeCode(images, self._add_image, finder)

    def set_kernel(self, kernel: Kernel | None, boot: int) -> None:
        """Use a kernel that was found or read anew; None when it is gone."""
        before = self._kernel
        self._kernel, self._boot = kernel, boot
        if kernel is not None and before is not None and kernel.structs is before.structs and kernel.space is before.space:
            return
        self._mappings = self._page_cache = self._shared = None
        self._processes.clear()
        self._made.set_kernel(None, None)
        if kernel is None:
            self._uncached.clear()
        if kernel is None or kernel.structs is None or kernel.structs.field("vm_area_struct", "vm_file") is None:
            return
        try:
            self._mappings = MappingReader(kernel.space, kernel.symbols, kernel.structs)
        except BadImageError as error:
            self._tell("no-mappings", f"user code cannot be told by file: {error}")
        try:
            self._page_cache = PageCache(kernel.space, kernel.symbols, kernel.structs)
        except BadImageError as error:
            self._tell("no-page-cache", f"the guest's page cache cannot be read: {error}")
        else:
            for file, identity in self._uncached:
                self._read_file(file, identity)
            self._uncached.clear()
        if kernel.unknown is not None:
            return
        try:
            self._made.set_kernel(PerfMapFinder(kernel.space, kernel.structs), self._page_cache)
        except BadImageError as error:
            self._tell("no-perf-maps", f"code that programs made cannot be named: {error}")

    def look(self, words: TaskWords) -> ProcessCode | UserEnd:
        """What the process of a task has mapped now, or why that is not known."""
        if self._mappings is None:
            return UserEnd.NO_MAPPINGS
        if not self._budget.has_room:
            return UserEnd.NOT_READ
        with self._budget.spending():
            return self._look(words, self._mappings) or UserEnd.NO_MAPPINGS

    def _look(self, words: TaskWords, reader: MappingReader) -> ProcessCode | None:
        self._made.see(words)
        known = self._processes.get(words.mm)
        stamp = reader.stamp(words.mm)
        if known is not None and known.stamp == stamp and stamp is not None:
            self._processes.move_to_end(words.mm)
            return known.code
        try:
            mappings = reader.read(words.mm)
        except GuestMemoryError:
            # It is changing them; what it had before is nearly the same, if it is the same process.
            if known is None or known.stamp is None or stamp is None or not reader.is_same_process(known.stamp, stamp):
                return None
            return known.code
        self._looks += 1
        if self._looks % _LOOKS_TO_FORGET == 0:
            self._pages.forget_missing()
        code = ProcessCode(mappings, lambda mapping: self._file_of(mapping, mappings, words), self._shared_code)
        self._processes[words.mm] = _Process(stamp, code)
        if len(self._processes) > _MAX_PROCESSES:
            self._processes.popitem(last=False)
        return code

    def unwind(self, registers: Registers, capture: Capture, code: ProcessCode, *, in_system_call: bool) -> UserWalk:
        """The user stack of a capture."""
        return self._unwinder.unwind(registers, capture.read, code, code.stack_top, in_system_call=in_system_call)

    def _file_of(self, mapping: Mapping, mappings: Mappings, words: TaskWords) -> UserFile | int:
        if mapping.file is not None:
            file = self._file(mapping.file, mapping.path)
            if file.is_foreign and mapping.path.startswith(_SHARED_MEMORY):
                image = self._made.image(words)
                return image if self._made.has_map(words) else file
            return file
        signal_code = self._signal_code(mapping, mappings)
        if signal_code is not None:
            return signal_code
        if mapping.path == ANONYMOUS:
            return self._made.image(words)
        if mapping.path == _VDSO:
            return self._vdso(mapping, mappings)
        return self._plain_image(mapping.path)

    def _add_image(self, name: str) -> int:
        return self._images.add_image(Image(name, FrameKind.USER, self._boot, None, (), None))

    def _file(self, identity: FileIdentity, path: str) -> UserFile:
        key = (identity.device, identity.number, identity.generation, identity.size, identity.mtime_ns, identity.source)
        file = self._files.get(key)
        if file is None:
            file = self._files[key] = UserFile(self._add_image(path), path)
            self._read_file(file, identity)
            if self._page_cache is None:
                self._uncached.append((file, identity))
        return file

    def _read_file(self, file: UserFile, identity: FileIdentity) -> None:
        file.is_final = False
        self._jobs.append((file, self._reader.read(file, identity, self._page_cache, self._pages)))

    def _vdso(self, mapping: Mapping, mappings: Mappings) -> UserFile | int:
        """The kernel's own library; there is one for each kind of process, told by its size."""
        key = (_VDSO, self._boot, mapping.end - mapping.start)
        file = self._files.get(key)
        if file is not None:
            return file
        space = self._space_of(mappings)
        if space is None or mapping.end - mapping.start > _MAX_VDSO:
            return self._plain_image(_VDSO)
        file = self._files[key] = UserFile(self._add_image(_VDSO), _VDSO)
        self._jobs.append((file, self._reader.read_image(file, ProcessContents(space, mapping))))
        return file

    def _signal_code(self, mapping: Mapping, mappings: Mappings) -> UserFile | None:
        """The page with what signal handlers return to, of kernels that have no vDSO for it; None for other memory.

        Kernels without type information do not tell its name.
        """
        abi = self._architecture.user_abis[-1]
        find = abi.known_row
        if find is None or mapping.end - mapping.start != PAGE_SIZE:
            return None
        key = (_SIGNAL_PAGE, self._boot)
        if key in self._files:
            # Each process has it somewhere else.
            return self._files[key] if self._read_page(mapping, mappings) == self._signal_page else None
        data = self._read_page(mapping, mappings)
        if data is None or not any(find(at, data[at : at + 8]) for at in range(0, PAGE_SIZE, 4)):
            return None
        self._signal_page = data
        file = self._files[key] = UserFile(self._add_image(_SIGNAL_PAGE), _SIGNAL_PAGE)
        file.is_final = file.is_foreign = True
        file.checked = CheckedCodeRows(BytesContents(data).read, abi)
        return file

    def _read_page(self, mapping: Mapping, mappings: Mappings) -> bytes | None:
        space = self._space_of(mappings)
        return None if space is None else space.read_many([(mapping.start, PAGE_SIZE)])[0]

    def _space_of(self, mappings: Mappings) -> AddressSpace | None:
        """The memory of a process, None where its page table is not known."""
        if self._kernel is None or mappings.page_table is None:
            return None
        return AddressSpace(self._memory, self._kernel.space.tables, mappings.page_table)

    def _shared_code(self) -> Region | None:
        """The kernel's code that all processes may call; it changes with the kernel alone."""
        abi = self._architecture.user_abis[-1]
        where, kernel = abi.kernel_code, self._kernel
        if self._shared is None and where is not None and kernel is not None:
            name, start, end, functions = where
            names = SymbolTable.from_symbols((address, "t", function) for function, address in functions.items())
            image = self._images.add_image(Image(name, FrameKind.USER, self._boot, None, (), names))
            code = CheckedCodeRows(lambda address, size: kernel.space.read_many([(address, size)])[0], abi)
            self._shared = Region(start, end, 0, image, checked=code)
        return self._shared

    def _plain_image(self, path: str) -> int:
        if path not in self._plain:
            self._plain[path] = self._add_image(path)
        return self._plain[path]

    @property
    def has_work(self) -> bool:
        """Whether ``step`` would do anything now."""
        return (bool(self._jobs) or self._made.has_work) and self._budget.has_room

    def may_learn(self, images: frozenset[int]) -> bool:
        """Whether more will become known of any of these files (by image)."""
        files = {file.image: file for file in self._files.values()} if images else {}
        wanted = [file for image in images if (file := files.get(image)) is not None]
        for file in wanted:
            file.is_missed = True
        return any(not file.is_final for file in wanted)

    def step(self) -> list[int]:
        """Do a few milliseconds of reading; the files (by image) of which all is known now that ever will be."""
        with self._budget.spending():
            return self._step()

    def _step(self) -> list[int]:
        if self._made.has_work:
            self._made.step()
            return []
        if not self._jobs:
            return []
        file, work = self._jobs[0]
        try:
            next(work)
        except StopIteration:
            pass
        except BadImageError as error:
            file.problem = str(error)
            file.is_foreign = file.elf is None
        except GuestMemoryError as error:
            file.problem = str(error)
        else:
            return []
        self._jobs.popleft()
        file.is_final = True
        build_id = file.elf.build_id if file.elf is not None else None
        self._images.update_image(file.image, build_id=build_id, symbols=file.symbols)
        return [file.image]

    def finish(self) -> None:
        """The recording ends: look once more at what changes as long as programs run, and then read all that is still wanted."""
        self._budget = HaltBudget.unlimited()
        self._made.finish()

    def tell_problems(self) -> None:
        """Say of which files contents were missed, when the recording ends."""
        for file in self._files.values():
            if file.is_missed and file.problem:
                self._tell("file-unreadable", f"{file.path}: {file.problem}")
