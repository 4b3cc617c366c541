"""What a guest's sysfs says of its modules → where their code is, by their files; and chains of addr2line's as gdb's are judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks._modules import is_in, loaded_modules, with_modules
from benchmarks._vmlinux import Vmlinux
from benchmarks.inlined import ask_addr2line, has_equal_functions, has_equal_lines
from guest.elf.debug_file import DebugFile
from guest.elf.inlined import SourceFrame
from guest.elf.source_cache import SourceCache
from guest.symbolize import source_frames
from recording.errors import MissingDependencyError
from recording.symbols import SymbolTable
from tests.builders.debug_program import build, needs_compiler

CODE = 0xFFFF_FFFF_C000_0000
SLIDE = 0x100_0000


def vmlinux_of(directory: Path) -> Vmlinux:
    path = directory / "usr/lib/debug/boot/vmlinux-6.1.0-test"
    return Vmlinux(path, "", SymbolTable.from_symbols([]), (0x1000, 0x3000), (0x2000, 0x4000))


@needs_compiler
def test_modules_lie_where_sysfs_says(tmp_path: Path) -> None:
    path = tmp_path / "usr/lib/debug/lib/modules/6.1.0-test/kernel/some-module.ko"
    path.parent.mkdir(parents=True)
    build(tmp_path, "-gdwarf-5", relocatable=True).rename(path)
    console = "".join(
        f"section /sys/module/some_module/sections/{name} {address:#x}\n"
        for name, address in ((".text", CODE), (".init.text", CODE + 0x10000), (".none", CODE + 0x20000))
    )
    (module,) = loaded_modules(f"noise\n{console}more", vmlinux_of(tmp_path))
    with DebugFile(path) as file:
        size = next(section.size for section in file.code.values() if section.name == ".text")
    assert (module.name, module.path, module.sections) == ("some_module", path, {".text": (CODE, CODE + size)})
    assert module.gdb_command == f"add-symbol-file {path} -s .text {CODE:#x}"
    assert [is_in([module], CODE + at) for at in (-1, 0, size - 1, size)] == [False, True, True, False]
    whole = with_modules(vmlinux_of(tmp_path), [module], SLIDE)
    assert [whole.has_frame_information(at) for at in (0x1000, 0x2000, 0x3FFF)] == [True, False, True]
    assert [whole.has_frame_information(CODE - SLIDE + at) for at in (-1, 0, size - 1, size)] == [False, True, True, False]
    with pytest.raises(MissingDependencyError, match="no file of the module other"):
        loaded_modules(console.replace("some_module", "other"), vmlinux_of(tmp_path))


@needs_compiler
def test_what_addr2line_says_is_read(tmp_path: Path) -> None:
    path = build(tmp_path, "-gdwarf-5")
    with DebugFile(path) as file:
        addresses = [symbol.address + 4 for symbol in file.symbols()]
        ours = source_frames(file, addresses, SourceCache(None))
    theirs = ask_addr2line(path, [*addresses, 0x10])
    assert len(theirs) == len(addresses) + 1
    assert theirs[-1] == [(None, None, 0)]
    judged = [(ours.get(address, ()), other) for address, other in zip(addresses, theirs, strict=False)]
    assert all(has_equal_functions(*pair) for pair in judged)
    assert any(len(mine) > 1 for mine, _ in judged), "something is inlined"
    frame = SourceFrame("work", "/build/src/work.c", 14)
    assert has_equal_lines([frame], [("work", "./src/work.c", 14)])
    assert not has_equal_lines([frame], [("work", "./src/work.c", 15)])
    assert not has_equal_functions([frame], [("work", None, 14), ("caller", None, 1)])
    assert has_equal_functions([SourceFrame(None, "entry.S", 14)], [("entry", "entry.S", 14)])
