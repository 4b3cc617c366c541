"""Files of this machine with symbols and debug information: found for a piece of the guest's code, and matched to it.

``--vmlinux`` names the kernel's, ``--symbol-dir`` a directory as distributions lay it out: by build ID
(``.build-id/xx/yyyy.debug``), or by name (``boot/vmlinux-RELEASE``, ``lib/modules/RELEASE/.../NAME.ko``); DEBUGINFOD_URLS names
servers. A build ID decides where both sides have one, and in any case the symbols that the guest showed have to fit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from guest.debuginfod import Debuginfod
from guest.elf.debug_file import DebugFile
from guest.elf.kernel_image import open_image
from guest.elf.placement import Anchor, Placement, find_anchors, find_placement, own_placement
from guest.elf.source_cache import SourceCache
from recording.errors import BadImageError
from recording.model import FrameKind, Image

_MODULE_ENDS = (".ko", ".ko.debug", ".ko.xz", ".ko.zst", ".ko.gz", ".ko.bz2")
_MAX_FILES = 1 << 18


@dataclass(frozen=True, slots=True)
class HostFiles:
    """What the command line names. any_build: also take files whose build ID is another."""

    vmlinux: Path | None = None
    symbol_dirs: tuple[Path, ...] = ()
    any_build: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing is named."""
        return self.vmlinux is None and not self.symbol_dirs


@dataclass(frozen=True, slots=True)
class Match:
    """A file that is of an image, opened, and where its code is in the guest."""

    file: DebugFile
    placement: Placement


class HostFinder:
    """Finds files for images. Files that it opens are the caller's to close."""

    def __init__(
        self, files: HostFiles, cache: SourceCache, servers: Debuginfod | None = None, *, release: str | None = None
    ) -> None:
        """release: of the kernel, by which directories name its files."""
        self._files = files
        self._cache = cache
        self._servers = servers
        self._release = release

    def find(self, image: Image, tell: Callable[[str], None]) -> Match | None:
        """The best file that there is for an image, one with debug information before others.

        ``tell`` is given a sentence for each file that was not taken. Raises BadImageError where ``--vmlinux`` cannot be: it
        is named on purpose.
        """
        best: Match | None = None
        if image.kind is FrameKind.KERNEL and self._files.vmlinux is not None:
            return self._matched(image, open_image(self._files.vmlinux))
        for path in self._candidates(image):
            try:
                match = self._matched(image, open_image(path))
            except BadImageError as error:
                tell(str(error))
                continue
            if match.file.has_lines:
                if best is not None:
                    best.file.close()
                return match
            if best is None and match.file.has_symbols:
                best = match
            else:
                match.file.close()
        return best

    def _matched(self, image: Image, file: DebugFile) -> Match:
        """Raises BadImageError where the file is not of the image."""
        try:
            if None not in (image.build_id, file.build_id) and image.build_id != file.build_id and not self._files.any_build:
                what = f"the guest's {'kernel' if image.kind is FrameKind.KERNEL else image.name} of build {image.build_id}"
                message = f"{file.path} is of build {file.build_id}, {what}; name the file of the same build (or give --any-build)"
                raise BadImageError(message)
            if image.kind is FrameKind.USER:
                return Match(file, own_placement(file))
            placement = None if image.symbols is None else find_placement(image.symbols, file, known_anchors(file, self._cache))
            if placement is None:
                if not file.has_symbols:
                    raise BadImageError(
                        f"{file.path} has no symbols, so nothing is to be learnt from it; name one of a -dbg package"
                    )
                raise BadImageError(
                    f"the symbols of {file.path} are not those of {image.name} in the guest; name the file of the same build"
                )
        except BadImageError:
            file.close()
            raise
        return Match(file, placement)

    def _candidates(self, image: Image) -> Iterator[Path]:
        for directory in self._files.symbol_dirs:
            for path in self._in_directory(directory, image):
                if path.is_file():
                    yield path
        if self._servers is not None and image.build_id is not None:
            fetched = self._servers.find(image.build_id)
            if fetched is not None:
                yield fetched

    def _in_directory(self, directory: Path, image: Image) -> Iterator[Path]:
        roots = [directory, directory / "usr/lib/debug", directory / "lib/debug"]
        if image.build_id is not None and len(image.build_id) > 2:
            below = f"{image.build_id[:2]}/{image.build_id[2:]}"
            for root in roots:
                yield root / ".build-id" / f"{below}.debug"
            yield directory / f"{below}.debug"
        if image.kind is FrameKind.KERNEL:
            names = ["vmlinux", *([f"vmlinux-{self._release}", f"lib/modules/{self._release}/vmlinux"] if self._release else [])]
            for root in roots:
                for name in reversed(names):
                    yield root / name
                    yield root / "boot" / name
        elif image.kind is FrameKind.MODULE:
            yield from self._modules(directory).get(image.name.replace("-", "_"), ())
        elif image.name.startswith("/"):
            for root in roots:
                for end in (".debug", ""):
                    yield root / (image.name.lstrip("/") + end)

    @cached_property
    def _known_modules(self) -> dict[Path, dict[str, list[Path]]]:
        return {}

    def _modules(self, directory: Path) -> dict[str, list[Path]]:
        """Files of modules below a directory by the module's name, those with debug information by their place first."""
        known = self._known_modules.get(directory)
        if known is None:
            known = self._known_modules[directory] = {}
            for path in sorted(_module_files(directory), key=lambda path: ("debug" not in path.parts, path)):
                name = path.name.partition(".ko")[0].replace("-", "_")
                known.setdefault(name, []).append(path)
        return known


def known_anchors(file: DebugFile, cache: SourceCache) -> Sequence[Anchor]:
    """Symbols by which a file's place is told. A kernel's are kept: reading all of its symbols takes a quarter of a second."""
    key = "" if file.build_id is None or file.is_relocatable or not file.has_lines else file.build_id
    anchors = cache.load_anchors(key) if key else []
    if not anchors:
        anchors = find_anchors(file)
        if key and anchors:
            cache.save_anchors(key, anchors)
    return anchors


def _module_files(directory: Path) -> Iterator[Path]:
    count = 0
    for base, _, names in os.walk(directory):
        for name in names:
            if name.endswith(_MODULE_ENDS):
                count += 1
                if count > _MAX_FILES:
                    return
                yield Path(base, name)
