"""One file with code that processes of the guest have mapped: what is known of it, and how more becomes known, in steps.

In this order: what the guest's page cache holds; what an earlier recording kept, by build ID; the guest's storage and the
directories that the user named. Whatever is used must have the headers that the guest runs, where those are in its memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from guest.elf.cache import ElfCache
from guest.elf.file import ElfFile, open_elf
from guest.elf.function_starts import FunctionStarts
from guest.elf.rows import UserRows
from guest.elf.sections import read_sections
from guest.elf.symbols import ElfSymbols, read_symbols
from guest.memory import Steps
from guest.user.contents import FileContents, PageCacheContents, PagePool
from guest.user.mappings import FileIdentity
from guest.user.page_cache import PageCache
from recording.errors import BadImageError
from recording.symbols import SymbolTable
from unwind.arch import Architecture
from unwind.checked_rows import CheckedCodeRows
from unwind.code_rows import CodeRows
from unwind.frame_table import Unread
from unwind.instructions import Instruction
from unwind.rules import Row
from unwind.user_abi import UserAbi


class FileFinder(Protocol):
    """Contents of a guest's files from outside its memory."""

    def find_file(self, identity: FileIdentity, path: str) -> Steps[FileContents | str]:
        """The file, or a sentence that says why it cannot be had and what would help."""
        ...

    def find_symbol_files(self, build_id: str, path: str) -> Steps[Sequence[FileContents]]:
        """Files with symbols that may be of a build."""
        ...


class UserFile:
    """A file with code: rows by link-time addresses, through as much of it as is known so far.

    image: its index in the recording. is_final: nothing more will become known. is_foreign: it is no ELF file, so it has no table.
    is_missed: a stack could not be walked for want of it. problem: why not all of it is known, "" otherwise.
    code, checked: rows out of its code, None where there are always others, or where these are of the other kind.
    """

    def __init__(self, image: int, path: str) -> None:
        self.image = image
        self.path = path
        self.elf: ElfFile | None = None
        self.symbols: SymbolTable | None = None
        self.is_final = self.is_foreign = self.is_missed = False
        self.problem = ""
        self._rows: UserRows | None = None
        self.code: CodeRows | None = None
        self.checked: CheckedCodeRows | None = None

    def adopt(self, elf: ElfFile, rows: UserRows) -> None:
        """Use these contents from now on."""
        self.elf, self._rows = elf, rows

    def adopt_code(self, elf: ElfFile, abi: UserAbi | None) -> None:
        """Make rows out of the code in these contents, where programs of that kind may have no others."""
        if abi is not None and abi.follows_call is not None:
            self.checked = CheckedCodeRows(elf.read, abi)
        elif abi is not None and abi.decode is not None:
            self.code = CodeRows(elf.read, abi, FunctionStarts(elf).before)

    def find_code_rows(self, address: int, *, interrupted: bool) -> Sequence[Row]:
        """See ``unwind.user.UserCodeRows``."""
        return () if self.code is None else self.code.find_rows(address, interrupted=interrupted)

    def find_call(self, address: int) -> Instruction | None:
        """See ``unwind.user.UserCodeRows``."""
        return None if self.code is None else self.code.find_call(address)

    @property
    def entry(self) -> int | None:
        """Link-time address at which the program begins, None for a library or where that is not known."""
        return self.elf.entry if self.elf is not None else None

    def find_row(self, address: int) -> Row | Unread | None:
        """See ``unwind.user.UserRows``."""
        if self._rows is not None:
            return self._rows.find_row(address)
        return None if self.is_foreign else Unread.UNREAD

    def find_start(self, address: int) -> int | None:
        """See ``unwind.user.UserRows``."""
        return None if self._rows is None else self._rows.find_start(address)

    def bias(self, start: int, offset: int) -> int:
        """Run-time minus link-time addresses in an executable mapping; while headers are not known, minus offsets in the file."""
        bias = self.elf.bias(start, offset, is_executable=True) if self.elf is not None else None
        return start - offset if bias is None else bias


class UserFileReader:
    """Reads files, each once."""

    def __init__(self, architecture: Architecture, finder: FileFinder | None, cache: ElfCache) -> None:
        """finder: None where nothing but guest memory, and what was kept, is to be used."""
        self._abis = architecture.user_abis
        self._finder = finder
        self._cache = cache

    def read(self, file: UserFile, identity: FileIdentity, page_cache: PageCache | None, pages: PagePool) -> Steps[None]:
        """Learn all of a file that can be learnt. Raises BadImageError where it is no ELF file."""
        resident = open_elf(PageCacheContents(page_cache, identity, pages)) if page_cache is not None else None
        whole = None
        if resident is not None:
            file.adopt(resident, UserRows(resident, self._abis))
            file.adopt_code(resident, self._abi_of(resident))
            yield
            whole = self._cache.load_file(resident.digest(identity.mtime_ns))
        if whole is None and self._finder is not None:
            whole = yield from self._read_stored(file, identity, resident, self._finder)
        elif whole is None:
            file.problem = "not all of it is in guest memory, and nothing else may be read (--no-storage)"
        if whole is not None:
            rows = UserRows(whole, self._abis)
            yield from rows.prepare()
            file.adopt(whole, rows)
        if file.elf is not None:
            file.symbols = yield from self._read_symbols(file, file.elf)

    def read_image(self, file: UserFile, contents: FileContents) -> Steps[None]:
        """The same for an image that is in memory only and whole (the vDSO)."""
        elf = open_elf(contents, is_final=True)
        if elf is None:
            raise BadImageError("its pages are not in guest memory")
        file.adopt(elf, UserRows(elf, self._abis))
        file.adopt_code(elf, self._abi_of(elf))
        yield
        file.symbols = (yield from read_symbols(elf)).table

    def _abi_of(self, elf: ElfFile) -> UserAbi | None:
        return next((abi for abi in self._abis if abi.pointer_size == elf.pointer_size), None)

    def _read_stored(
        self, file: UserFile, identity: FileIdentity, resident: ElfFile | None, finder: FileFinder
    ) -> Steps[ElfFile | None]:
        found = yield from finder.find_file(identity, file.path)
        if isinstance(found, str):
            file.problem = found
            return None
        ranges = yield from read_sections(found)
        whole = open_elf(ranges, is_final=True) if ranges is not None else None
        if ranges is None or whole is None:
            file.problem = "it could not be read whole from the guest's storage"
            return None
        yield
        if resident is not None and resident.header.raw != whole.header.raw:
            file.problem = "the guest runs another file than the one that was found in its place"
            return None
        self._cache.save_file(whole.digest(identity.mtime_ns), ranges)
        return whole

    def _read_symbols(self, file: UserFile, elf: ElfFile) -> Steps[SymbolTable]:
        symbols = yield from read_symbols(elf)
        if not symbols.has_static and elf.build_id is not None and self._finder is not None:
            better = yield from self._read_debug_file(elf, elf.build_id, file.path, self._finder)
            symbols = better or symbols
        return symbols.table

    def _read_debug_file(self, elf: ElfFile, build_id: str, path: str, finder: FileFinder) -> Steps[ElfSymbols | None]:
        """Symbols out of the first debug file of the same build."""
        candidates = yield from finder.find_symbol_files(build_id, path)
        for candidate in candidates:
            try:
                ranges = yield from read_sections(candidate)
                debug = open_elf(ranges, is_final=True) if ranges is not None else None
                if debug is not None:
                    return (yield from read_symbols(elf, debug))
            except BadImageError:
                continue
        return None
