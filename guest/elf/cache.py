"""What was read of a file of a guest's storage is kept on the host: the next recording does without that storage."""

from __future__ import annotations

from guest.cache import HostCache
from guest.elf.file import ElfFile, open_elf
from guest.elf.sections import decode_ranges, encode_ranges
from guest.user.contents import RangeContents
from recording.errors import BadImageError


class ElfCache(HostCache):
    """Files by ``ElfFile.digest``: build ID, headers and size."""

    MAGIC = b"GPELF03\0"
    SUFFIX = ".elf"
    DIRECTORY = "files"

    def load_file(self, digest: str) -> ElfFile | None:
        """A file that was kept, or None."""
        sections = self.load(digest)
        ranges = None if sections is None else decode_ranges(sections)
        try:
            return None if ranges is None else open_elf(ranges, is_final=True)
        except BadImageError:
            return None

    def save_file(self, digest: str, ranges: RangeContents) -> None:
        """Keep what ``read_sections`` read."""
        self.save(digest, encode_ranges(ranges))
