"""Files of the host for an image of the guest: found by build ID or name, and refused where they are of another build."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from guest.debuginfod import Debuginfod
from guest.elf.debug_file import DebugFile
from guest.elf.kernel_image import open_image
from guest.elf.placement import find_anchors, find_placement
from guest.elf.source_cache import SourceCache
from guest.host_files import HostFiles, HostFinder
from recording.errors import BadImageError
from recording.model import FrameKind, Image
from recording.symbols import SymbolTable
from tests.builders.debug_program import build, needs_compiler
from tests.builders.disks import need

pytestmark = needs_compiler
SLIDE = 0x1_2340_0000


def image_of(path: Path, kind: FrameKind = FrameKind.KERNEL, *, build_id: str | None = None, slide: int = SLIDE) -> Image:
    """What a guest that runs a file, moved by some bytes, shows of it."""
    with DebugFile(path) as file:
        symbols = SymbolTable.from_symbols((symbol.address + slide, "t", symbol.name) for symbol in file.symbols())
        own = file.build_id
    name = {FrameKind.KERNEL: "vmlinux", FrameKind.MODULE: "some_module", FrameKind.USER: "/usr/bin/tool"}[kind]
    return Image(name, kind, 0, build_id or own, ((slide, slide + (1 << 32)),), symbols)


def finder(directory: Path, files: HostFiles, servers: Debuginfod | None = None) -> HostFinder:
    return HostFinder(files, SourceCache(directory / "cache"), servers, release="6.1.0-test")


def nothing(line: str) -> None:
    raise AssertionError(line)


@pytest.fixture(scope="module")
def vmlinux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("vmlinux"), "-gdwarf-5")


def test_vmlinux_is_taken_and_its_place_is_known(tmp_path: Path, vmlinux: Path) -> None:
    for _ in range(2):  # the second time by what the cache kept
        match = finder(tmp_path, HostFiles(vmlinux)).find(image_of(vmlinux), nothing)
        assert match is not None
        with match.file as file:
            first = next(symbol for symbol in file.symbols() if symbol.name == "first")
            assert match.placement.to_file(first.address + SLIDE) == first.address
            assert match.placement.to_file(0x1000) is None


def test_a_vmlinux_of_another_build_is_refused_unless_forced(tmp_path: Path, vmlinux: Path) -> None:
    image = image_of(vmlinux, build_id="ab" * 20)
    with pytest.raises(BadImageError, match=r"of build .* kernel of build abab.*--any-build"):
        finder(tmp_path, HostFiles(vmlinux)).find(image, nothing)
    match = finder(tmp_path, HostFiles(vmlinux, any_build=True)).find(image, nothing)
    assert match is not None
    match.file.close()


def test_symbols_that_do_not_fit_are_refused_even_then(tmp_path: Path, vmlinux: Path) -> None:
    names = [f"other_{index}" for index in range(50)] + ["first", "second", "outer"]
    symbols = SymbolTable.from_symbols((0x1000 + 77 * index, "t", name) for index, name in enumerate(names))
    image = Image("vmlinux", FrameKind.KERNEL, 0, None, ((0x1000, 0x9000),), symbols)
    with pytest.raises(BadImageError, match="not those of vmlinux"):
        finder(tmp_path, HostFiles(vmlinux, any_build=True)).find(image, nothing)


def test_a_stripped_file_cannot_be_matched_and_says_so(tmp_path: Path) -> None:
    path = build(tmp_path, "-s", "-g0")
    whole = build(tmp_path / ".", "-gdwarf-5")
    image = image_of(whole, build_id="cd" * 20)
    stripped = build(tmp_path, "-s", "-g0")
    with pytest.raises(BadImageError, match="no symbols, so nothing is to be learnt"):
        finder(tmp_path, HostFiles(stripped, any_build=True)).find(image, nothing)
    assert path == stripped


@pytest.mark.parametrize("place", ["usr/lib/debug/.build-id/{0}/{1}.debug", ".build-id/{0}/{1}.debug", "{0}/{1}.debug"])
def test_a_directory_by_build_id(tmp_path: Path, vmlinux: Path, place: str) -> None:
    image = image_of(vmlinux)
    assert image.build_id is not None
    path = tmp_path / "symbols" / place.format(image.build_id[:2], image.build_id[2:])
    path.parent.mkdir(parents=True)
    shutil.copy(vmlinux, path)
    match = finder(tmp_path, HostFiles(symbol_dirs=(tmp_path / "symbols",))).find(image, nothing)
    assert match is not None
    with match.file as file:
        assert file.path == path


@pytest.mark.parametrize("place", ["boot/vmlinux-6.1.0-test", "usr/lib/debug/boot/vmlinux-6.1.0-test", "vmlinux"])
def test_a_directory_by_the_kernels_release(tmp_path: Path, vmlinux: Path, place: str) -> None:
    path = tmp_path / "symbols" / place
    path.parent.mkdir(parents=True)
    shutil.copy(vmlinux, path)
    match = finder(tmp_path, HostFiles(symbol_dirs=(tmp_path / "symbols",))).find(image_of(vmlinux), nothing)
    assert match is not None
    with match.file as file:
        assert file.path == path


@pytest.mark.parametrize("suffix", [".ko", ".ko.debug", ".ko.xz", ".ko.gz", ".ko.bz2"])
def test_modules_by_name_each_section_at_a_place_of_its_own(tmp_path: Path, suffix: str) -> None:
    source = build(tmp_path, "-gdwarf-5", relocatable=True)
    path = tmp_path / "symbols/lib/modules/6.1.0-test/kernel/some-module"
    path.parent.mkdir(parents=True)
    packed: dict[str, Callable[[bytes], bytes]] = {".ko.xz": lzma.compress, ".ko.gz": gzip.compress, ".ko.bz2": bz2.compress}
    data = source.read_bytes()
    path.with_name(path.name + suffix).write_bytes(packed[suffix](data) if suffix in packed else data)
    with DebugFile(source) as file:
        places = {index: 0xC000_0000 + 0x100_0000 * number for number, index in enumerate(file.code)}
        starts = {index: section.start for index, section in file.code.items()}
        rows = [(places[symbol.section] + symbol.address - starts[symbol.section], "t", symbol.name) for symbol in file.symbols()]
    image = Image("some_module", FrameKind.MODULE, 0, None, (), SymbolTable.from_symbols(rows))
    match = finder(tmp_path, HostFiles(symbol_dirs=(tmp_path / "symbols",))).find(image, nothing)
    assert match is not None
    with match.file as file:
        for symbol in file.symbols():
            run_time = places[symbol.section] + symbol.address - starts[symbol.section]
            assert match.placement.to_file(run_time) == symbol.address


def test_files_of_a_directory_that_do_not_fit_are_told_of_and_passed_over(tmp_path: Path, vmlinux: Path) -> None:
    directory = tmp_path / "symbols"
    (directory / "boot").mkdir(parents=True)
    shutil.copy(vmlinux, directory / "boot/vmlinux-6.1.0-test")
    lines: list[str] = []
    image = image_of(vmlinux, build_id="ab" * 20)
    assert finder(tmp_path, HostFiles(symbol_dirs=(directory,))).find(image, lines.append) is None
    assert len(lines) == 1
    assert "of build" in lines[0]


@contextmanager
def served(directory: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_debuginfod_is_asked_where_the_environment_names_a_server(tmp_path: Path, vmlinux: Path) -> None:
    image = image_of(vmlinux)
    assert image.build_id is not None
    path = tmp_path / "served/buildid" / image.build_id / "debuginfo"
    path.parent.mkdir(parents=True)
    shutil.copy(vmlinux, path)
    lines: list[str] = []
    with served(tmp_path / "served") as url:
        environment = {"DEBUGINFOD_URLS": f"http://127.0.0.1:1/ {url}/", "DEBUGINFOD_CACHE_PATH": str(tmp_path / "fetched")}
        assert finder(tmp_path, HostFiles(), Debuginfod({**environment, "DEBUGINFOD_URLS": ""})).find(image, nothing) is None
        assert Debuginfod(environment, nothing, may_fetch=False).find(image.build_id) is None
        match = finder(tmp_path, HostFiles(), Debuginfod(environment, lines.append)).find(image, nothing)
        assert match is not None
        match.file.close()
        assert [line.split(maxsplit=1)[0] for line in lines] == [
            f"http://127.0.0.1:1/buildid/{image.build_id}/debuginfo:",
            "fetching",
        ]
        assert Debuginfod(environment, lines.append).find("12" * 20) is None
    # From the cache, with nobody to ask.
    assert (
        Debuginfod(environment, nothing, may_fetch=False).find(image.build_id)
        == tmp_path / "fetched" / image.build_id / "debuginfo"
    )
    assert Debuginfod(environment, lines.append).find("../../etc") is None


def packed(command: str) -> Callable[[bytes], bytes]:
    words = command.split()
    return lambda data: subprocess.run([need(words[0], words[0]), *words[1:]], input=data, check=True, capture_output=True).stdout


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    **{
        f"xz --{name}": packed(f"xz --check=crc32 --{name} --lzma2=dict=32MiB")
        for name in ("x86", "powerpc", "arm", "armthumb", "sparc")
    },
    "xz": lzma.compress,
    "lzma": partial(lzma.compress, format=lzma.FORMAT_ALONE),
    "lzo": packed("lzop -9"),
    "lz4": packed("lz4 -l -9 - -"),
    # The window of "-22 --ultra", without its half a minute.
    "zstd": packed("zstd -1 --zstd=wlog=27"),
}
"""As scripts/Makefile.lib and scripts/xz_wrap.sh pack a kernel."""


@pytest.mark.parametrize("name", PACKERS)
def test_kernel_images_are_unpacked(tmp_path: Path, vmlinux: Path, name: str) -> None:
    data = vmlinux.read_bytes()
    # A boot program before it, false beginnings among its bytes, and the length that the kernel's build appends.
    image = b"MZ" + os.urandom(999) + b"\x1f\x8b\x08BZh\xfd7zXZ\0" + PACKERS[name](data) + len(data).to_bytes(4, "little")
    path = tmp_path / "vmlinuz"
    path.write_bytes(image)
    with open_image(path) as file, DebugFile(vmlinux) as own:
        assert file.path == path
        assert file.build_id == own.build_id
        assert file.symbols() == own.symbols()


IMAGE = bytes(56) + b"ARM\x64" + bytes(5000)
NO_ELF_FILES = {
    "Image": IMAGE,
    "Image.gz": gzip.compress(IMAGE),
    # drivers/firmware/efi/libstub/zboot-header.S
    "vmlinuz.efi": struct.pack("<4s4sIIQ32s", b"MZ", b"zimg", 64, 5000, 0, b"gzip").ljust(64, b"\0") + gzip.compress(IMAGE),
}


@pytest.mark.parametrize("name", NO_ELF_FILES)
def test_an_image_without_an_elf_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(NO_ELF_FILES[name])
    with pytest.raises(BadImageError, match=r"a kernel that is no ELF file.*-dbg package"):
        open_image(path)
    path.write_bytes(b"nothing of all that" * 50)
    with pytest.raises(BadImageError, match="holds no ELF file"):
        open_image(path)


def test_placement_needs_most_symbols_to_agree(vmlinux: Path) -> None:
    with DebugFile(vmlinux) as file:
        anchors = find_anchors(file)
        rows = [(address + SLIDE, "t", name) for name, _, address in anchors]
        placement = find_placement(SymbolTable.from_symbols(rows), file, anchors)
        assert placement is not None
        moved = [(address + (0x10 if index % 2 else 0), kind, name) for index, (address, kind, name) in enumerate(rows)]
        assert find_placement(SymbolTable.from_symbols(moved), file, anchors) is None
        assert find_placement(SymbolTable.from_symbols([]), file, anchors) is None
