"""Mappings, paths, control groups and the page cache of real guests, against what the guests themselves show.

By default one kernel that keeps mappings in a list and a red-black tree, and one with a maple tree; GUESTPROF_ALL_KERNELS=1
runs all four.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from guest.btf import read_structs
from guest.cache import KernelCache
from guest.cgroups import CgroupReader
from guest.finder import find_kernel
from guest.kernel import Kernel, load_kernel
from guest.memory import run_steps
from guest.paging import PAGE_SIZE
from guest.records import Record, read_records
from guest.structs import Structs
from guest.user.mappings import Mapping, MappingReader
from guest.user.page_cache import PageCache
from guestprof.initramfs import find_busybox
from recording.errors import MissingDependencyError
from sampler.discovery import TargetAddress
from sampler.halt import HaltedState, Read
from sampler.session import Session
from tests.builders.words import LITTLE_64
from tests.conftest import BOOT_ATTEMPTS, generations, skip_loudly
from tests.qemu.guests import Guest, GuestCrashedError, GuestOptions
from tests.qemu.mappings_guest import END_MARK, LONG, MAPPINGS_TRUTH, Shown, build_mappings_initramfs, parse_console

pytestmark = pytest.mark.qemu

TREES = generations("5.10", "7.2")
LINE = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) (....) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)")


class NoReads:
    """A planner of nothing: registers alone."""

    def probes(self) -> Sequence[Read]:
        return ()

    def plan(self, _state: HaltedState) -> tuple[Sequence[Read], bool]:
        return (), True


@dataclass(frozen=True, slots=True)
class Looked:
    """A guest at rest. tasks: (mm, cgroups) by pid. programs: bytes of what runs."""

    kernel: Kernel
    structs: Structs
    shown: list[Shown]
    tasks: dict[int, tuple[int, int]]
    busybox: bytes
    truth: bytes

    def readers(self) -> tuple[MappingReader, PageCache, CgroupReader]:
        facts = self.kernel.space, self.kernel.symbols, self.structs
        return MappingReader(*facts), PageCache(*facts), CgroupReader(*facts)


def read_tasks(kernel: Kernel, structs: Structs) -> dict[int, tuple[int, int]]:
    record = Record(structs, "task_struct", ("tasks.next", "pid", "mm", "cgroups"))
    inside = structs.require("task_struct", "tasks").offset
    first = kernel.symbols.find("init_task")
    assert first is not None
    found: dict[int, tuple[int, int]] = {}
    task = first.address
    while not found or task != first.address:
        (values,) = read_records(kernel.space, [(record, task)])
        assert values is not None
        following, pid, mm, cgroups = values
        found[pid] = mm, cgroups
        task = following - inside
    return found


def boot(kernel: Path, initramfs: Path) -> Guest:
    for attempt in range(1, BOOT_ATTEMPTS + 1):
        guest = Guest(GuestOptions(kernel, initramfs, append="quiet"))
        try:
            guest.wait_for(END_MARK)
        except GuestCrashedError:
            guest.close()
            if attempt == BOOT_ATTEMPTS:
                raise
        except BaseException:
            guest.close()
            raise
        else:
            return guest
    raise AssertionError


@pytest.fixture(scope="module", params=list(TREES.values()), ids=list(TREES))
def looked(
    request: pytest.FixtureRequest, guest_kernel: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Looked]:
    suite: str = request.param
    directory = tmp_path_factory.mktemp("mappings")
    kernel = guest_kernel(suite)
    try:
        busybox = find_busybox()
        (directory / "initramfs").write_bytes(build_mappings_initramfs(kernel, suite, busybox, directory))
    except MissingDependencyError as error:
        skip_loudly(str(error))
        raise
    truth = (directory / MAPPINGS_TRUTH.name).read_bytes()
    with boot(kernel, directory / "initramfs") as guest:
        console = guest.console.read_bytes()
        with Session(TargetAddress(str(guest.target), str(guest.qmp), guest.pid)) as session:
            state = session.target.capture(NoReads())
            location = run_steps(find_kernel(session.memory, session.architecture, state.registers))
            assert location is not None
            found = run_steps(load_kernel(session.architecture, location, KernelCache(None)))
            structs = run_steps(read_structs(found.space, found.symbols, LITTLE_64))
            yield Looked(found, structs, parse_console(console), read_tasks(found, structs), busybox, truth)


def as_shown(mapping: Mapping, line: bytes) -> bytes:
    """A mapping in the guest's words; what guestprof does not know, or knows otherwise, is taken from there."""
    match = LINE.fullmatch(line)
    assert match is not None, line
    _start, _end, permissions, offset, major, minor, number, name = match.groups()
    path = mapping.path.encode("utf-8", "surrogateescape") + (b" (deleted)" if mapping.is_deleted else b"")
    if mapping.path == "[anon]" or (mapping.path == "[file]" and int(number)):
        path = b"" if mapping.path == "[anon]" else name
    execute = b"x" if mapping.is_executable else b"-"
    if mapping.file is not None:
        number = b"%d" % mapping.file.number
        # The device of an overlay is its own, its files' contents lie elsewhere.
        if not mapping.path.startswith("/ov/"):
            major, minor = b"%02x" % (mapping.file.device >> 20), b"%02x" % (mapping.file.device & 0xFFFFF)
    if mapping.path != "[file]":
        offset = b"%08x" % mapping.offset
    text = b"%08x-%08x %s%s%s " % (mapping.start, mapping.end, permissions[:2], execute, permissions[3:])
    text += b"%s %s:%s %s" % (offset, major, minor, number)
    return text.ljust(73) + path if path else text


def test_mappings_are_the_guests_own(looked: Looked) -> None:
    reader, _pages, _groups = looked.readers()
    lines = 0
    paths = set()
    for process in looked.shown:
        mm, _cgroups = looked.tasks[process.pid]
        found = reader.read(mm).mappings
        expected = [line.rstrip() for line in process.maps]
        assert [as_shown(mapping, line) for mapping, line in zip(found, expected, strict=True)] == expected
        stamp = reader.stamp(mm)
        assert stamp is not None
        assert stamp == reader.stamp(mm)
        lines += len(expected)
        paths |= {mapping.path for mapping in found if mapping.is_executable}
    long = f"/scratch/{LONG}/b/busybox of a name that is too long as well: \udcff"
    assert paths >= {
        *(
            "/bin/busybox",
            "/scratch/busybox",
            "/stacked/busybox",
            "/scratch/busybox-gone",
            "/scratch/away/busybox",
            "/jail/busybox",
        ),
        *("/ov/busybox-low", "/ov/busybox-up", long, long.replace(f"/scratch/{LONG}/b", "/bound")),
        *("/bin/mappings-truth", "/memfd:of a \udcff memfd", "/SYSV00001234", "/dev/zero", "[anon]", "[vdso]"),
    }
    assert lines > 530
    print(lines, "lines of maps")


def test_cgroups_are_the_guests_own(looked: Looked) -> None:
    _reader, _pages, groups = looked.readers()
    shown = {process.comm: process.cgroup for process in looked.shown}
    assert shown["mappings-truth"] == "/system.slice/a-service.service"
    for process in looked.shown:
        assert groups.path(looked.tasks[process.pid][1]) == process.cgroup


def test_pages_are_the_files_bytes(looked: Looked) -> None:
    reader, cache, _groups = looked.readers()
    compared = 0
    file_systems = set()
    for process in looked.shown:
        mapping = next(each for each in reader.read(looked.tasks[process.pid][0]).mappings if each.is_executable)
        assert mapping.file is not None
        content = looked.truth if process.comm == "mappings-truth" else looked.busybox
        assert mapping.file.size == len(content)
        padded = content + bytes(-len(content) % PAGE_SIZE)
        expected = [padded[at : at + PAGE_SIZE] for at in range(0, len(padded), PAGE_SIZE)]
        pages = cache.read_pages(mapping.file.inode, range(len(expected)))
        is_whole = mapping.file.file_system != "ext4"
        assert [page for page in pages if page is not None] == [
            each for each, page in zip(expected, pages, strict=True) if page is not None
        ]
        resident = sum(page is not None for page in pages)
        # Of a file on a disk only what was read is there.
        assert resident == len(expected) if is_whole else resident > 100
        compared += resident
        file_systems.add(mapping.file.file_system)
    assert file_systems >= {"rootfs", "tmpfs"}
    assert compared > 6000
    print(compared, "pages compared, of", sorted(file_systems))
