"""Rows of Go programs: what the linker says in .debug_frame, what the runtime says of its own stack, and stops at any time."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest.elf.file import ElfFile, open_elf
from guest.elf.go_functions import read_go_functions
from guest.elf.go_rows import GoRows
from guest.elf.go_table import GoTable, find_go_table
from guest.elf.header import SHT_NULL, Section
from guest.elf.rows import UserRows
from guest.elf.sections import read_sections
from guest.elf.symbol_rows import Code
from guest.elf.symbols import read_symbols
from guest.memory import run_steps
from guest.user.contents import BytesContents
from recording.model import UserEnd
from tests.builders.host_process import HostProcess
from tests.builders.unwind_tables import TableOfFile, read_printed_rows
from tests.guest.elf.programs import SomePages, need
from unwind.arch.x86_64 import X86_64
from unwind.frame_table import Unread
from unwind.rules import Row, RowKind

AMD64 = X86_64.user_abis[1]
PROGRAMS = Path(__file__).parent / "programs_go"
Build = Callable[..., Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    directory = tmp_path_factory.mktemp("go")
    built: dict[tuple[str, ...], Path] = {}

    def run(source: str, *options: str) -> Path:
        key = (source, *options)
        if key not in built:
            environment = {**os.environ, "GOCACHE": str(directory / "cache"), "GO111MODULE": "off", "CGO_ENABLED": "0"}
            output = directory / f"program{len(built)}"
            command = [need("go"), "build", *options, "-o", str(output), str(PROGRAMS / source)]
            result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if result.returncode:
                warnings.warn(f"rows of Go programs are not tested: go build: {result.stderr[-200:]}", stacklevel=2)
                pytest.skip(f"go build does not work here: {result.stderr[-200:]}")
            built[key] = output
        return built[key]

    return run


def opened(data: bytes) -> ElfFile:
    file = open_elf(BytesContents(data), is_final=True)
    assert file is not None
    return file


def rows_of(data: bytes) -> UserRows:
    return UserRows(opened(data), X86_64.user_abis)


def test_depths_are_those_of_debug_frame(build: Build) -> None:
    path = build("busy.go", "-ldflags=-compressdwarf=false")
    rows = rows_of(path.read_bytes())
    names = run_steps(read_symbols(opened(path.read_bytes()))).table
    found: Counter[str] = Counter()
    kinds: dict[str, RowKind] = {}
    for printed in read_printed_rows(path):
        row = rows.find_row(printed.start)
        symbol = names.find_at(printed.start)
        assert isinstance(row, Row), hex(printed.start)
        assert symbol is not None
        if row.kind is not RowKind.CALL:
            kinds[symbol.name.removesuffix(".abi0")] = row.kind
        elif row.register == "rsp" and not symbol.name.startswith("runtime.sigreturn"):
            assert printed.cells["CFA"] == f"rsp+{row.offset}", hex(printed.start)
            found["same"] += 1
    assert found["same"] > 5000
    ends = {name for name, kind in kinds.items() if kind is RowKind.END}
    assert ends <= {
        *("runtime.goexit", "runtime.mstart", "runtime.rt0_go", "runtime.mcall", "runtime.systemstack", "runtime.morestack"),
        *("runtime.asmcgocall", "_rt0_amd64", "_rt0_amd64_linux", "runtime.morestack_noctxt", "runtime.mstart0", "runtime.mstart1"),
    }


def test_roots_clocks_and_signals(build: Build) -> None:
    data = build("busy.go").read_bytes()
    rows = rows_of(data)
    table = run_steps(read_symbols(opened(data))).table

    def row(name: str, offset: int) -> Row | Unread | None:
        symbol = table.find(name) or table.find(f"{name}.abi0")
        assert symbol is not None, name
        return rows.find_row(symbol.address + offset)

    assert row("runtime.goexit", 0) == Row(RowKind.END)
    assert row("runtime.mcall", 0) == Row(RowKind.CALL, "rsp", 8)
    assert row("runtime.mcall", 9) == Row(RowKind.END)
    assert row("gogo", 5) == Row(RowKind.UNDEFINED)
    assert row("runtime.nanotime1", 0) == Row(RowKind.CALL, "rsp", 8)
    clock = row("runtime.nanotime1", 0x60)
    assert isinstance(clock, Row)
    assert (clock.register, clock.offset) == ("r12", 32)
    preempt = row("runtime.asyncPreempt", 0)
    assert preempt == Row(RowKind.CALL, "rsp", 8, is_signal=True)
    restorer = next(symbol for symbol in table if symbol.name.startswith("runtime.sigreturn"))
    for offset in (-1, 0):
        signal = rows.find_row(restorer.address + offset)
        assert isinstance(signal, Row)
        assert signal.is_signal
        assert signal.return_address is not None
        assert (signal.offset, signal.return_address.offset) == (160, 168)


@pytest.mark.parametrize("options", [("-ldflags=-s",), ("-ldflags=-s", "-buildmode=pie")], ids=["fixed", "pie"])
def test_a_stripped_program_keeps_rows_and_names(build: Build, options: tuple[str, ...]) -> None:
    whole = build("plain.go", *options[1:]).read_bytes()
    data = build("plain.go", *options).read_bytes()
    theirs = run_steps(read_symbols(opened(whole))).table
    ours = run_steps(read_symbols(opened(data))).table
    for name in ("main.work", "runtime.mallocgc"):
        first, second = theirs.find(name), ours.find(name)
        assert first is not None
        assert second is not None
        assert first.address == second.address
    for contents in (data, whole):
        kept = run_steps(read_sections(BytesContents(contents)))
        file = None if kept is None else open_elf(kept, is_final=True)
        assert file is not None
        rows, truth = UserRows(file, X86_64.user_abis), rows_of(contents)
        for symbol in list(ours)[::7]:
            assert rows.find_row(symbol.address) == truth.find_row(symbol.address)


class _Table(TableOfFile):
    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.shared_table = rows_of(data)  # type: ignore[assignment]


def run_stopped(program: Path) -> tuple[subprocess.Popen[bytes], HostProcess, list[int]]:
    """A running program, and the numbers of its first line."""
    if not Path("/usr/bin/gdb").exists():
        warnings.warn("no gdb: stacks of Go programs are not walked", stacklevel=2)
        pytest.skip("no gdb")
    process = subprocess.Popen([program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    line = process.stdout.readline().split()
    host = HostProcess(process.pid, {str(program.resolve()): _Table(program.read_bytes())})
    return process, host, [int(word) for word in line if word.isdigit()]


def test_the_runtime_walks_the_same_stack(build: Build) -> None:
    process, host, callers = run_stopped(build("callers.go", "-ldflags=-s"))
    try:
        host.stop()
        walks = [host.walk(thread.registers) for thread in host.threads()]
        found = [host.pcs(walk) for walk in walks]
        assert {walk.end for walk in walks} == {UserEnd.THREAD_START}
        assert not any(frame.guess for walk in walks for frame in walk.frames)
        # The call in which it waits is another one than that in which it asked for its callers.
        assert len(callers) > 20
        assert any(pcs[-len(callers) + 1 :] == callers[1:] for pcs in found)
    finally:
        process.kill()
        process.communicate()


def test_stacks_of_a_busy_program_are_whole(build: Build) -> None:
    """Goroutines that compute, wait, allocate and are preempted, the collector, timers, system calls."""
    process, host, _ = run_stopped(build("busy.go", "-ldflags=-s"))
    ends: Counter[UserEnd] = Counter()
    depth = 0
    try:
        for _ in range(6):
            host.stop()
            for thread in host.threads():
                walk = host.walk(thread.registers)
                ends[walk.end] += 1
                depth = max(depth, len(walk.frames))
                assert not any(frame.guess for frame in walk.frames)
            host.resume()
    finally:
        process.kill()
        process.communicate()
    # What may be lost: a call of the vDSO from a goroutine, whose stack is another one, and switches of stacks.
    assert ends[UserEnd.THREAD_START] >= ends.total() - 2, ends
    assert ends.total() >= 20
    assert depth > 5


def test_what_is_known_in_part_is_right(build: Build) -> None:
    data = build("busy.go", "-ldflags=-s").read_bytes()
    truth, file = rows_of(data), opened(data)
    functions, _ = run_steps(read_go_functions(file, file.code()))
    for seed in range(3):
        some = SomePages.random(data, seed, 0.7)
        some.pages |= {0, *range(len(data) // 4096 - 4, len(data) // 4096 + 1)}
        sparse = open_elf(some)
        assert sparse is not None
        rows = UserRows(sparse, X86_64.user_abis)
        answers = Counter[bool]()
        for function in functions[seed::9]:
            row = rows.find_row(function.address + 1)
            answers[row is Unread.UNREAD] += 1
            assert row in (Unread.UNREAD, truth.find_row(function.address + 1))
        assert answers[True]
        some.pages |= set(range(len(data) // 4096 + 1))
        assert all(rows.find_row(one.address + 1) == truth.find_row(one.address + 1) for one in functions[seed::9])


def test_a_table_that_lies_costs_rows_only(build: Build) -> None:
    data = build("busy.go", "-ldflags=-s").read_bytes()
    section = opened(data).section(".gopclntab")
    assert section is not None
    file = opened(data)
    starts = [one.address for one in run_steps(read_go_functions(file, file.code()))[0]]
    chance = random.Random(3)
    for _ in range(30):
        changed = bytearray(data)
        for _ in range(4):
            at = section.offset + chance.choice((chance.randrange(72), chance.randrange(section.size)))
            size = chance.choice((1, 4, 4096))
            changed[at : at + size] = chance.choice((bytes(size), b"\xff" * size, chance.randbytes(size)))
        rows = rows_of(bytes(changed))
        for start in starts[:: len(starts) // 50]:
            assert rows.find_row(start + 5) is not Unread.UNREAD


class Bare(ElfFile):
    """A file of nothing but a table."""

    def __init__(self, table: bytes) -> None:
        program = bytearray(
            struct.pack("<4s5B7xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 0, 2, 62, 1, 0, 0, 0, 0, 64, 56, 0, 64, 0, 0)
        )
        file = open_elf(BytesContents(bytes(program)))
        assert file is not None
        super().__init__(BytesContents(table), file.header, is_final=True)
        self._sections = (Section(".gopclntab", SHT_NULL + 1, False, 0x500000, 0, len(table), 0, 0),)


DEPTHS = bytes([2, 4, 48, 10, 47, 1, 0])
"""0 for 4 bytes, 24 for 10, 0 for 1."""


def table_of(magic: int) -> bytes:
    """``main.f`` of 15 bytes at 0x401000, ``runtime.goexit`` of 1 byte behind it."""
    names, rest = b"\0main.f\0runtime.goexit\0", (7, 0)
    if magic in {0xFFFFFFF0, 0xFFFFFFF1}:
        header = 8 + 8 * 8
        pad = b"" if magic == 0xFFFFFFF0 else struct.pack("<i", 1)
        records = [
            struct.pack("<9I", at, name, 0, 0, 1, 0, 0, 0, 0) + pad + bytes([7, flag, 0, 0])
            for at, name, flag in ((0, 1, 0), (15, 8, 1))
        ]
        functions = struct.pack("<5I", 0, 20, 15, 20 + len(records[0]), 16)
        depths = b"\0" + DEPTHS
        words = (
            2,
            0,
            0x401000,
            header,
            header + len(names),
            header + len(names),
            header + len(names),
            header + len(names) + len(depths),
        )
        return struct.pack("<IHBB8Q", magic, 0, 1, 8, *words) + names + depths + functions + b"".join(records)
    size = 44
    pairs = struct.pack("<5Q", 0x401000, 40, 0x40100F, 40 + size, 0x401010)
    if magic == 0xFFFFFFFA:
        header = 8 + 7 * 8
        depths = b"\0" + DEPTHS
        records = [
            struct.pack("<Q8I", at, name, 0, 0, 1, 0, 0, 0, 0) + bytes([*rest, 0, 0]) for at, name in ((0x401000, 1), (0x40100F, 8))
        ]
        places = (2, 0, header, header + len(names), header + len(names), header + len(names), header + len(names) + len(depths))
        return struct.pack("<IHBB7Q", magic, 0, 1, 8, *places) + names + depths + pairs + b"".join(records)
    base = 16 + 40
    pairs = struct.pack("<5Q", 0x401000, base, 0x40100F, base + size, 0x401010)
    strings = base + 2 * size
    depths_at = strings + len(names)
    records = [
        struct.pack("<Q8I", at, strings + name, 0, 0, depths_at, 0, 0, 0, 0) + bytes(4)
        for at, name in ((0x401000, 1), (0x40100F, 8))
    ]
    return struct.pack("<IHBBQ", magic, 0, 1, 8, 2) + pairs + b"".join(records) + names + DEPTHS


@pytest.mark.parametrize("magic", [0xFFFFFFFB, 0xFFFFFFFA, 0xFFFFFFF0, 0xFFFFFFF1], ids=["1.2", "1.16", "1.18", "1.20"])
def test_formats(magic: int) -> None:
    file = Bare(table_of(magic) + bytes(64))
    assert isinstance(find_go_table(file), GoTable)
    rows = GoRows(file, AMD64)
    offsets = [row.offset for at in range(15) if isinstance(row := rows.find_row(0x401000 + at), Row)]
    assert offsets == [8] * 4 + [32] * 10 + [8]
    assert rows.find_row(0x40100F) == Row(RowKind.END)
    assert rows.find_row(0x400FFF) is None
    assert rows.find_row(0x401010) is None
    functions, is_complete = run_steps(read_go_functions(file, Code([(0x401000, 0x402000)], is_exact=True)))
    assert is_complete
    assert [(one.address, one.name, one.end) for one in functions] == [
        (0x401000, "main.f", 0x40100F),
        (0x40100F, "runtime.goexit", 0x401010),
    ]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([0xFFFFFFFB, 0xFFFFFFFA, 0xFFFFFFF0, 0xFFFFFFF1]),
    st.lists(st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=9)), max_size=6),
    st.integers(0, 300),
)
def test_no_table_raises(magic: int, changes: list[tuple[int, bytes]], length: int) -> None:
    table = bytearray(table_of(magic) + bytes(64))
    for at, data in changes:
        table[at : at + len(data)] = data
    for file in (Bare(bytes(table)), Bare(bytes(table[:length]))):
        for address in (0, 0x401000, 0x401005, 0x40100E, 0x40100F, 2**64 - 1):
            GoRows(file, AMD64).find_row(address)
        run_steps(read_go_functions(file, Code([(0x401000, 0x402000)], is_exact=True)))
