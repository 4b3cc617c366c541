"""Layouts of files, for kernels without type information: found by what the structs hold.

``include/linux/fs.h``, ``dcache.h``, ``mount.h``, ``xarray.h``. From the open files that programs are mapped from:

    dentry.d_name       a pointer to the dentry's own bytes behind it, where short names are; a length in front of it that fits
    dentry              what all versions begin it with: flags, a sequence number, d_hash, d_parent, d_name, d_inode
    file.f_path         an address of a dentry, in front of it one of a ``struct mount``'s ``mnt``, which has a dentry as its root
    file.f_inode        the same address as the dentry's d_inode
    inode.i_sb          the same address as the mount's mnt_sb; then i_mapping, into the inode itself, to an ``address_space`` that
                        has the inode as its host; then i_ino (behind i_security), numbers of links and of a device, i_size
    inode.i_mtime       three times of day with nanoseconds in one of two forms
    super_block         s_dev behind the list that it begins with; s_type, which has a name; s_id: that name without a device

Each is taken only where one place fits in most of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from guest.found_types import Members, are_most, most, only, read_mapped
from guest.kernel_lists import read_pointer, read_string
from guest.memory import Steps
from guest.paging import AddressSpace
from guest.words import Words
from recording.errors import BadImageError
from unwind.arch import Architecture

_MAX_FILES = 64
_FILE_WORDS = 24
"""Of ``struct file`` (no more: behind it may be another one) in which its members are looked for."""
_DENTRY_SIZE, _INODE_SIZE, _SUPER_SIZE = 0x80, 0x300, 0x800
_INLINE = 32
"""Bytes of a name within its dentry, at least (DNAME_INLINE_LEN)."""
_HASH_AT = 8
_MAX_NAME = 255
_ID_SIZE, _UUID_SIZE = 32, 16
_MAX_SIZE = 1 << 40
_MAX_TIME = 1 << 33
_SECOND = 1_000_000_000
_FILE_SHAPE = "the open files of programs have an unknown form"


@dataclass(frozen=True, slots=True)
class FileLayout:
    """By struct the members that were found. mappings: by file (address) the address of its ``struct address_space``."""

    structs: dict[str, Members]
    mappings: dict[int, int]


@dataclass(frozen=True, slots=True)
class _Block:
    address: int
    data: bytes
    words: tuple[int, ...]


class FileSearch:
    """Looks at the same files."""

    def __init__(self, space: AddressSpace, words: Words, architecture: Architecture, files: Sequence[int]) -> None:
        """files: addresses of ``struct file``."""
        self._space = space
        self._words = words
        self._is_kernel = architecture.is_kernel_address
        self._files = self._read(list(files)[:_MAX_FILES], _FILE_WORDS * words.size)
        self._name_at = 0
        self._long_alignment = 8

    def find(self, ends: dict[int, int]) -> Steps[FileLayout]:
        """The layouts. ends: by file (address) a byte that it must have, as far as is known.

        Raises BadImageError where they cannot be told.
        """
        size = self._words.size
        path, inode_at, dentries = self._find_path()
        yield
        dentry = self._dentry_layout()
        mounts = self._read_mounts([block.words[path] for block in self._files])
        yield
        # On overlayfs a file's inode is that of the upper or lower file, its dentry's another.
        pairs = {
            file.words[inode_at]: (file.address, mount.words[5])
            for file, mount in zip(self._files, mounts, strict=True)
            if mount is not None and self._inode_of(dentries[file.words[path + 1]]) == file.words[inode_at]
        }
        inodes = self._read(list(pairs), _INODE_SIZE)
        if not inodes:
            raise BadImageError(_FILE_SHAPE)
        supers = self._super_layout([pairs[block.address][1] for block in inodes])
        yield
        inode, mappings = self._inode_layout(inodes, pairs, ends)
        return FileLayout(
            {
                "file": {
                    "f_inode": (inode_at * size, size),
                    "f_path": (path * size, {"mnt": (0, size), "dentry": (size, size)}),
                },
                "dentry": dentry,
                "mount": {
                    "mnt_parent": (2 * size, size),
                    "mnt_mountpoint": (3 * size, size),
                    "mnt": (4 * size, {"mnt_root": (0, size), "mnt_sb": (size, size)}),
                },
                "inode": inode,
                "super_block": supers,
                "file_system_type": {"name": (0, size)},
            },
            {file.address: found for file in self._files if (found := mappings.get(file.words[inode_at])) is not None},
        )

    def _read(self, addresses: Sequence[int], size: int) -> list[_Block]:
        blocks = ((address, read_mapped(self._space, address, size)) for address in addresses)
        return [_Block(address, data, self._words.pointers(data)) for address, data in blocks if len(data) >= size // 2]

    def _is_object(self, address: int) -> bool:
        return self._is_kernel(address) and not address % self._words.size and self._space.translate(address) is not None

    def _only(self, count: int, fits: Callable[[int], bool]) -> int:
        found = only(range(count), fits)
        if found is None:
            raise BadImageError(_FILE_SHAPE)
        return found

    def _find_path(self) -> tuple[int, int, dict[int, _Block]]:
        """The words of a file that are its f_path and its f_inode; and the dentries."""
        count = min((len(file.words) for file in self._files), default=0)
        places = []
        for index in range(1, count):
            addresses = {file.words[index] for file in self._files}
            if not most(map(self._is_object, addresses)):
                continue
            blocks = {block.address: block for block in self._read(sorted(addresses), _DENTRY_SIZE)}
            name = self._find_name(list(blocks.values()))
            if name is not None:
                places.append((index - 1, name, blocks))
        if len(places) != 1:
            raise BadImageError(_FILE_SHAPE)
        path, self._name_at, dentries = places[0]
        # Those that are closed meanwhile may be something else by now.
        self._files = [file for file in self._files if file.words[path + 1] in dentries]

        def is_inode(index: int) -> bool:
            same = sum(file.words[index] == self._inode_of(dentries[file.words[path + 1]]) for file in self._files)
            return 2 * same >= len(self._files)

        return path, self._only(count, is_inode), dentries

    def _find_name(self, blocks: Sequence[_Block]) -> int | None:
        """Where dentries have the address of their name."""
        size = self._words.size
        found = [at for at in range(_HASH_AT + 3 * size, _DENTRY_SIZE // 2, size) if self._have_names(blocks, at)]
        return found[0] if len(found) == 1 else None

    def _have_names(self, blocks: Sequence[_Block], at: int) -> bool:
        own = sum(block.words[at // self._words.size] == block.address + self._inline_at(at) for block in blocks)
        return 2 * own > len(blocks) and most(self._has_name(block, at) for block in blocks)

    def _inline_at(self, name_at: int) -> int:
        """Where a dentry has its short name: behind ``struct qstr``, which ends with the name's address, and d_inode."""
        size = self._words.size
        start = name_at - 8
        return start + _aligned(8 + size, 8 if start % 8 == 0 else 4) + size

    def _has_name(self, block: _Block, at: int) -> bool:
        """Whether a dentry has a name of the length that it says; longer ones lie elsewhere."""
        length = self._words.number(block.data[self._length_at(at) : self._length_at(at) + 4])
        name = block.words[at // self._words.size]
        if not 0 < length <= _MAX_NAME or not self._is_kernel(name):
            return False
        data = self._space.read_many([(name, length + 1)])[0]
        return data is not None and data[length] == 0 and b"\0" not in data[:length]

    def _length_at(self, name_at: int) -> int:
        """``struct qstr``: hash and length make one number of 64 bits, the length its upper half."""
        return name_at - (4 if self._words.byteorder == "little" else 8)

    def _inode_of(self, dentry: _Block) -> int:
        return dentry.words[self._inline_at(self._name_at) // self._words.size - 1]

    def _dentry_layout(self) -> Members:
        size, name = self._words.size, self._name_at
        return {
            "d_hash": (_HASH_AT, {"next": (0, size), "pprev": (size, size)}),
            "d_parent": (_HASH_AT + 2 * size, size),
            "d_name": (name - 8, {"len": (self._length_at(name) - name + 8, 4), "name": (8, size)}),
            "d_inode": (self._inline_at(name) - size, size),
            "d_iname": (self._inline_at(name), _INLINE),
        }

    def _read_mounts(self, addresses: Sequence[int]) -> list[_Block | None]:
        """What lies around ``mnt`` in ``struct mount``. Raises BadImageError where it is something else."""
        size = self._words.size
        blocks = {
            address: block
            for address in dict.fromkeys(addresses)
            for block in self._read([address - 4 * size], 7 * size)
            if self._is_mount(block)
        }
        if not are_most(len(blocks), len(set(addresses))):
            raise BadImageError(_FILE_SHAPE)
        return [blocks.get(address) for address in addresses]

    def _is_mount(self, block: _Block) -> bool:
        _next, _pprev, parent, mountpoint, root, *_rest = block.words
        parents = self._read([parent], 7 * self._words.size) if self._is_object(parent) else []
        roots = [mountpoint, root, *(each.words[4] for each in parents)]
        dentries = self._read([each for each in roots if self._is_object(each)], _DENTRY_SIZE)
        return len(dentries) == 3 and all(self._has_name(each, self._name_at) for each in dentries)

    def _inode_layout(
        self, inodes: Sequence[_Block], pairs: dict[int, tuple[int, int]], ends: dict[int, int]
    ) -> tuple[Members, dict[int, int]]:
        """Of inodes, each with a file that it is of and its file system; and where each has its pages."""
        size = self._words.size
        count = min(len(block.words) for block in inodes)
        supers = self._only(count // 2, lambda index: most(block.words[index] == pairs[block.address][1] for block in inodes))
        mappings = {block.address: block.words[supers + 1] for block in inodes}
        hosts = self._space.read_many([(mapping, size) for mapping in mappings.values()])
        if not most(
            0 < mapping - inode < _INODE_SIZE and host is not None and self._words.number(host) == inode
            for (inode, mapping), host in zip(mappings.items(), hosts, strict=True)
        ):
            raise BadImageError(_FILE_SHAPE)
        # CONFIG_SECURITY puts a pointer in front of the number, which is never 0.
        number = supers + 2
        if all(self._is_kernel(block.words[number]) or not block.words[number] for block in inodes) and any(
            0 < block.words[number + 1] < 1 << 31 for block in inodes
        ):
            number += 1
        length = _aligned(number * size + size + 8, self._long_alignment)
        if not most(ends.get(pairs[block.address][0], 0) <= self._number(block, length, 8) < _MAX_SIZE for block in inodes):
            raise BadImageError(_FILE_SHAPE)
        members: dict[str, tuple[int, int | Members]] = {
            "i_sb": (supers * size, size),
            "i_mapping": (supers * size + size, size),
            "i_ino": (number * size, size),
            "i_size": (length, 8),
            **self._times(inodes, length + 8),
        }
        return members, mappings

    def _number(self, block: _Block, at: int, size: int) -> int:
        return self._words.number(block.data[at : at + size])

    def _times(self, inodes: Sequence[_Block], at: int) -> Members:
        """Where files have the time of their last change; nothing where it cannot be told.

        Three times, each with its nanoseconds; or, from 6.11 on, three times, and then the nanoseconds of all.
        """
        size = self._words.size
        whole = _aligned(8 + size, self._long_alignment)
        forms = (
            (at, whole, at + 8, whole, size, {"i_mtime": (at + whole, {"tv_sec": (0, 8), "tv_nsec": (8, size)})}),
            (at, 8, at + 24, 4, 4, {"i_mtime_sec": (at + 8, 8), "i_mtime_nsec": (at + 28, 4)}),
        )
        fitting = []
        for seconds, step, parts, parts_step, parts_size, members in forms:
            if all(
                self._number(block, seconds + step * index, 8) < _MAX_TIME
                and self._number(block, parts + parts_step * index, parts_size) < _SECOND
                for block in inodes
                for index in range(3)
            ):
                fitting.append(members)
        return fitting[0] if len(fitting) == 1 else {}

    def _super_layout(self, addresses: Sequence[int]) -> Members:
        size = self._words.size
        blocks = self._read(list(dict.fromkeys(addresses)), _SUPER_SIZE)
        # Behind the device: bits of a block's size, that size, and a file's largest size: 64 bits, which i386 does not align.
        for alignment in (8,) if size == 8 else (8, 4):
            kind = _aligned(3 * size + 8, alignment) + 8
            names = {block.address: self._name_of(block.words[kind // size]) for block in blocks}
            if blocks and all(_is_name(name) for name in names.values()):
                break
        else:
            raise BadImageError(_FILE_SHAPE)
        self._long_alignment = alignment
        places = [at for at in range(0x80, _SUPER_SIZE - _ID_SIZE, 4) if self._have_ids(blocks, names, at)]
        if len(places) != 1:
            raise BadImageError(_FILE_SHAPE)
        return {
            "s_dev": (2 * size, 4),
            "s_type": (kind, size),
            "s_id": (places[0], _ID_SIZE),
            "s_uuid": (places[0] + _ID_SIZE, _UUID_SIZE),
        }

    def _name_of(self, kind: int) -> str:
        """Of a file system's kind, "" for something else."""
        name = read_pointer(self._space, self._words, kind)
        return "" if not name else read_string(self._space, name)

    def _have_ids(self, blocks: Sequence[_Block], names: dict[int, str], at: int) -> bool:
        """Whether file systems have their names somewhere: that of their kind, or with a device the device's."""
        for block in blocks:
            text, nul, rest = block.data[at : at + _ID_SIZE].partition(b"\0")
            has_device = bool(self._number(block, 2 * self._words.size, 4) >> 20)
            if not nul or rest.strip(b"\0") or not text.isascii():
                return False
            name = text.decode("ascii")
            if not name.isprintable() or not (name if has_device else name == names[block.address]):
                return False
        return True


def _is_name(name: str) -> bool:
    """Whether something may be the name of a kind of file system."""
    return name.isascii() and name.replace("_", "").replace(".", "").isalnum()


def _aligned(value: int, alignment: int) -> int:
    return value + -value % alignment
