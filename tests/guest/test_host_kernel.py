"""Structs and names of data out of a kernel's file, against what the compiler that made the file says of them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guest.elf.debug_file import DebugFile
from guest.elf.source_cache import SourceCache
from guest.host_files import HostFiles, HostFinder
from guest.host_kernel import HostKernel, NamedKernel, SearchedKernel
from guest.structs import Field, Structs
from guest.words import Words
from recording.symbols import SymbolTable
from tests.builders.debug_program import build, needs_compiler

pytestmark = needs_compiler
SLIDE = 0x1_2340_0000

TYPES = """
typedef int pid_t;
typedef const pid_t shown_t;
struct list_head { struct list_head *next, *prev; };
struct area { void *base; unsigned int size; };
struct task {
    char state; shown_t pid;
    union { struct { long first; int second; }; int whole[4]; };
    struct list_head tasks;
    struct area mem[3];
    unsigned int low : 1, wide : 9, : 5, high : 3;
    unsigned long long far : 40;
    struct unknown *other;
    char name[16], tail[];
};
enum phase { LIVE, GOING = 2, LOST = -1 };
typedef struct { int inner; } named_by_typedef;
struct declared;
"""
SOURCE = (
    TYPES
    + """
enum phase phase; named_by_typedef value; struct declared *pointer;
struct task init_task __attribute__((section("per_cpu"))) = {.pid = 1};
static int modules __attribute__((used)) = 1;
extern int printf(const char *, ...);
__attribute__((noinline)) void schedule(void) { __asm__ volatile("" ::: "memory"); }
__attribute__((noinline)) void vfs_read(void) { __asm__ volatile("nop" ::: "memory"); }
__attribute__((noinline)) void filemap_read(void) { __asm__ volatile("nop;nop" ::: "memory"); }
int main(void) {
    struct task *t = 0; (void)t;
    schedule(); vfs_read(); filemap_read();
#define SHOW(path) printf(#path " %lu %lu\\n", (unsigned long)&t->path, (unsigned long)sizeof(t->path))
    SHOW(state); SHOW(pid); SHOW(first); SHOW(second); SHOW(whole); SHOW(whole[3]); SHOW(tasks.prev); SHOW(mem); SHOW(mem[2].size);
    SHOW(other); SHOW(name);
    return printf("size %lu 0\\n", (unsigned long)sizeof(struct task)) < 0;
}
"""
)


@pytest.fixture(params=["-gdwarf-5", "-gdwarf-4", "-gdwarf-3"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "program"
    (tmp_path / "program.c").write_text(SOURCE)
    strict = ["-gstrict-dwarf"] if request.param == "-gdwarf-3" else []
    command = ["gcc", "-O1", request.param, *strict, "-no-pie", "-o", str(path), str(tmp_path / "program.c")]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.fixture
def structs(program: Path) -> Iterator[Structs]:
    with DebugFile(program) as file:
        yield HostKernel(file).structs(Words(file.order, file.pointer_size), 4096)


def test_members_lie_where_the_compiler_puts_them(program: Path, structs: Structs) -> None:
    text = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    rows = {path: Field(int(at), int(size)) for path, at, size in re.findall(r"(\S+) (\d+) (\d+)", text)}
    assert structs.size_of("task") == rows.pop("size").offset
    assert len(rows) == 11
    assert {path: structs.field("task", path) for path in rows} == rows
    assert structs.field("task", "nothing") is None
    assert structs.field("task", "mem[3].size") is None


def test_bit_fields_are_the_bytes_that_hold_them(structs: Structs) -> None:
    low, far = structs.require("task", "low"), structs.require("task", "far")
    assert structs.field("task", "wide") == Field(low.offset, 2)
    assert structs.field("task", "high") == Field(low.offset + 1, 2)
    assert low.size == 1
    assert far == Field(low.offset + 2, 6), "bits 18 to 57"


def test_enums_and_other_names(structs: Structs) -> None:
    assert structs.enumerator("phase", "GOING") == 2
    assert structs.enumerator("phase", "LOST") == -1
    assert structs.enumerator("phase", "NONE") is None
    assert structs.field("named_by_typedef", "inner") == Field(0, 4)
    assert structs.size_of("shown_t") is None or structs.size_of("shown_t") == 4
    assert structs.size_of("declared") is None
    assert structs.size_of("no_such_struct") is None


def test_names_of_data_are_added_where_the_kernel_is(program: Path) -> None:
    with DebugFile(program) as file:
        shown = SymbolTable.from_symbols((symbol.address + SLIDE, "T", symbol.name) for symbol in file.symbols())
        assert shown.find("modules") is None
        host = HostKernel(file)
        table = host.with_data(shown)
        assert table is not None
        rows = re.findall(r"^(\w+) \w (\w+)$", nm(program), re.MULTILINE)
        for name in ("modules", "init_task", "schedule"):
            (address,) = [int(address, 16) for address, each in rows if each == name]
            found = table.find(name)
            assert found is not None
            assert found.address == address + SLIDE
        assert dict(host.structs(Words(file.order, 8), 4096).variables("per_cpu"))["init_task"] == 0
        other = SymbolTable.from_symbols((0x1000 * index, "T", symbol.name) for index, symbol in enumerate(file.symbols()))
        assert host.with_data(other) is None


def nm(path: Path) -> str:
    return subprocess.run(["nm", str(path)], check=True, capture_output=True, text=True).stdout


def test_build_ids_decide_which_kernel_it_is_of(program: Path) -> None:
    with DebugFile(program) as file:
        host = HostKernel(file)
        assert host.build_id == file.build_id is not None
        assert host.fits(file.build_id)
        assert host.fits(None)
        assert not host.fits("ab" * 20)
        forced = HostKernel(file, any_build=True)
        assert forced.fits("ab" * 20)
        assert forced.build_id is None


def finder_in(directory: Path) -> Callable[[str], HostFinder]:
    return lambda release: HostFinder(HostFiles(symbol_dirs=(directory,)), SourceCache(None), release=release)


def test_a_kernel_s_file_is_searched_by_its_release_and_then_known_by_its_build(tmp_path: Path) -> None:
    path = build(tmp_path, "-gdwarf-5")
    with DebugFile(path) as file:
        build_id = file.build_id
        shown = SymbolTable.from_symbols((symbol.address + SLIDE, "T", symbol.name) for symbol in file.symbols())
    (tmp_path / "symbols/boot").mkdir(parents=True)
    path.rename(tmp_path / "symbols/boot/vmlinux-6.1.0-test")
    kernels = SearchedKernel(finder_in(tmp_path / "symbols"))
    assert kernels.find("6.1.1-other", None, shown) is None
    source = kernels.find("6.1.0-test", None, shown)
    assert source is not None
    assert source.has_structs
    assert source.build_id == build_id
    assert kernels.find("6.1.0-test", build_id, shown) is source
    assert kernels.find("6.1.0-test", "ab" * 20, shown) is None
    others = SymbolTable.from_symbols((0x1000 + 77 * index, "T", f"other_{index}") for index in range(200))
    assert SearchedKernel(finder_in(tmp_path / "symbols")).find("6.1.0-test", None, others) is None


def test_the_file_that_was_named_is_of_one_build(tmp_path: Path) -> None:
    source = HostKernel(DebugFile(build(tmp_path, "-gdwarf-5")))
    shown = SymbolTable.from_symbols([])
    assert NamedKernel(source).build_id == source.build_id is not None
    assert NamedKernel(source).find("6.1.0-test", source.build_id, shown) is source
    assert NamedKernel(source).find("6.1.0-test", "ab" * 20, shown) is None
