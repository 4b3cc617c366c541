"""Readers of kernels of either byte order and size of pointers, by bytes written down here."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from guest.btf import parse_btf
from guest.identity import parse_build_id
from guest.kallsyms import decode_kallsyms, read_kallsyms
from guest.kallsyms_scan import find_kallsyms
from guest.kernel_lists import StructReader, read_pointer, walk_list
from guest.memory import run_steps
from guest.modules import ModuleReader
from guest.paging import AddressSpace
from guest.records import Record, read_records
from guest.structs import Field, Structs
from guest.system_calls import SystemCalls
from guest.words import Words
from recording.model import SystemCall
from recording.symbols import SymbolTable
from tests.builders.btf import Btf
from tests.builders.file_memory import BytesMemory
from tests.builders.kallsyms import GENERATIONS, build_kallsyms
from tests.builders.words import ALL_WORDS, BIG_32, BIG_64, LITTLE_32, LITTLE_64
from unwind.arch import PageTables

BASE = 0xC000_0000
"""Where memory begins for the kernels of these tests, with 4-byte and with 8-byte pointers."""
LINEAR = PageTables(
    page_shift=12,
    index_bits=(10, 10),
    large_levels=(),
    present=1,
    large=(0, 1),
    address_mask=0xFFFF_F000,
    entry_size=4,
    byteorder="little",
    linear=((BASE, BASE + 0x100_0000, 0),),
)
each_words = pytest.mark.parametrize("words", ALL_WORDS, ids=lambda words: f"{words.byteorder}-{8 * words.size}")


def space_of(pieces: Mapping[int, bytes]) -> AddressSpace:
    """Pieces by their virtual address."""
    return AddressSpace(BytesMemory({address - BASE: data for address, data in pieces.items()}), LINEAR, 0)


def pointers(words: Words, *values: int) -> bytes:
    return b"".join((value & words.mask).to_bytes(words.size, words.byteorder) for value in values)


def number(words: Words, value: int, size: int = 4) -> bytes:
    return value.to_bytes(size, words.byteorder)


@pytest.mark.parametrize(
    ("words", "data", "expected"),
    [
        (LITTLE_64, "0807060504030201 ffffffffffffffff", (0x0102030405060708, 0xFFFFFFFFFFFFFFFF)),
        (BIG_64, "0102030405060708 ffffffffffffffff", (0x0102030405060708, 0xFFFFFFFFFFFFFFFF)),
        (LITTLE_32, "04030201 ffffffff", (0x01020304, 0xFFFFFFFF)),
        (BIG_32, "01020304 ffffffff 00", (0x01020304, 0xFFFFFFFF)),
    ],
)
def test_pointers(words: Words, data: str, expected: tuple[int, ...]) -> None:
    assert words.pointers(bytes.fromhex(data)) == expected
    assert words.mask == max(expected)


def test_numbers() -> None:
    assert LITTLE_32.number(b"\x01\x00") == 1
    assert BIG_32.number(b"\x01\x00") == 256


def structs_of(words: Words) -> Structs:
    """``struct thing { short kind; void *next; char name[5]; }`` as compilers lay it out."""
    btf = Btf(words)
    short, byte, pointer = btf.number(2, "short"), btf.number(1, "char"), btf.pointer()
    size = words.size
    btf.struct("thing", 4 * size, [("kind", short, 0), ("next", pointer, size), ("name", btf.array(byte, 5), 2 * size)])
    return run_steps(parse_btf(btf.to_bytes(), words))


@each_words
def test_layouts_and_records(words: Words) -> None:
    structs = structs_of(words)
    assert structs.field("thing", "next") == Field(words.size, words.size)
    assert structs.words == words
    thing = number(words, 0x0102, 2).ljust(words.size, b"\0") + pointers(words, 0xC0DE_F00D) + b"abcde"
    space = space_of({BASE + 0x100: thing})
    record = Record(structs, "thing", ("next", "kind", "name"))
    assert read_records(space, [(record, BASE + 0x100)]) == [(0xC0DE_F00D, 0x0102, b"abcde")]
    values = StructReader(structs, "thing", ("kind", "next")).read(space, BASE + 0x100)
    assert values is not None
    assert (values.number("kind"), values.number("next")) == (0x0102, 0xC0DE_F00D)


@each_words
def test_lists(words: Words) -> None:
    """Two elements with the link one word behind their start."""
    head, first, second = BASE + 0x10, BASE + 0x100, BASE + 0x200
    space = space_of(
        {
            head: pointers(words, first + words.size, second + words.size),
            first: pointers(words, 7, second + words.size, head),
            second: pointers(words, 9, head, first + words.size),
        }
    )
    found = list(walk_list(space, words, head, words.size, 10))
    assert found == [first, second]
    assert [read_pointer(space, words, each) for each in found] == [7, 9]


def test_lists_begin_anew_at_0() -> None:
    """The link may lie behind the end of what a pointer can hold: elements are told modulo that."""
    space = space_of({BASE: pointers(BIG_32, 4, 0)})
    assert list(walk_list(space, BIG_32, BASE, 8, 10)) == [0xFFFF_FFFC]


@pytest.mark.parametrize("words", [LITTLE_64, BIG_64])
def test_build_id(words: Words) -> None:
    other = b"".join(number(words, each) for each in (6, 4, 257)) + b"Linux\0\0\0" + bytes(4)
    note = b"".join(number(words, each) for each in (4, 8, 3)) + b"GNU\0" + bytes(range(8))
    assert parse_build_id(other + note, words) == "0001020304050607"


@each_words
@pytest.mark.parametrize("generation", ["5.10", "5.10-absolute", "6.12", "6.15", "7.2"])
def test_symbol_tables(words: Words, generation: str) -> None:
    """From the image alone, with the numbers as each kernel writes them."""
    image = BASE + 0x10_0000
    text = [(image, "T", "_stext"), *((image + 0x10 + 16 * index, "t", f"do_some_function_{index:03}") for index in range(600))]
    blob, parts = build_kallsyms(text, GENERATIONS[generation], image + 0x4000, words)
    space = space_of({image: bytes(0x4000) + blob + bytes(-(len(blob) + 0x4000) % 0x4_0000)})
    place = run_steps(find_kallsyms(space, image, words))
    assert place is not None
    assert (place.names, place.token_index) == (parts["kallsyms_names"], parts["kallsyms_token_index"])
    table = run_steps(decode_kallsyms(space, run_steps(read_kallsyms(space, place)), {"_stext": image}, words)).table()
    symbol = table.find("do_some_function_599")
    assert symbol is not None
    assert symbol.address == image + 0x10 + 16 * 599


@each_words
def test_system_calls(words: Words) -> None:
    functions = [BASE + 0x1000, BASE + 0x1100]
    symbols = SymbolTable.from_symbols(
        [
            (functions[0], "T", "sys_read"),
            (functions[1], "T", "sys_write"),
            (BASE + 0x2000, "D", "sys_call_table"),
            (BASE + 0x2000 + 2 * words.size, "D", "behind"),
        ]
    )
    calls = SystemCalls(space_of({BASE + 0x2000: pointers(words, *functions)}), symbols, {"n": "sys_call_table"}, words)
    assert [calls.find("n", each) for each in range(3)] == [
        SystemCall("n", 0, "read"),
        SystemCall("n", 1, "write"),
        SystemCall("n", 2, None),
    ]


def module_structs(words: Words) -> Structs:
    btf = Btf(words)
    word = words.size
    integer, pointer, byte = btf.number(4), btf.pointer(), btf.number(1, "char")
    ring = btf.struct("list_head", 2 * word, [("next", pointer, 0), ("prev", pointer, word)])
    tables = [("symtab", pointer, 0), ("num_symtab", integer, word), ("strtab", pointer, 2 * word)]
    btf.struct("mod_kallsyms", 3 * word, tables)
    memory = btf.struct("module_memory", 2 * word, [("base", pointer, 0), ("size", integer, word)])
    btf.enum("mod_mem_type", {"MOD_TEXT": 0, "MOD_INIT_TEXT": 1})
    btf.enum("module_state", {"MODULE_STATE_LIVE": 0, "MODULE_STATE_COMING": 1, "MODULE_STATE_UNFORMED": 3})
    members = [
        ("state", integer, 0),
        ("list", ring, word),
        ("name", btf.array(byte, 8), 3 * word),
        ("kallsyms", pointer, 24 + word),
    ]
    btf.struct("module", 128, [*members, ("mem", btf.array(memory, 2), 64)])
    return run_steps(parse_btf(btf.to_bytes(), words))


@each_words
def test_modules(words: Words) -> None:
    """One module, with the symbols of ``Elf32_Sym`` or ``Elf64_Sym``: a function, something that it imports, and data."""
    word = words.size
    head, module, tables, code, strings, rows = (BASE + offset for offset in (0x10, 0x1000, 0x2000, 0x4000, 0x5000, 0x6000))
    module_bytes = bytearray(128)
    module_bytes[word : 3 * word] = pointers(words, head, head)
    module_bytes[3 * word : 3 * word + 4] = b"loop"
    module_bytes[24 + word : 24 + 2 * word] = pointers(words, tables)
    module_bytes[64 : 64 + word] = pointers(words, code)
    module_bytes[64 + word : 68 + word] = number(words, 0x1000)

    def row(name: int, section: int, value: int) -> bytes:
        if word == 4:
            return number(words, name) + number(words, value) + number(words, 8) + b"\x02\x00" + number(words, section, 2)
        return number(words, name) + b"\x02\x00" + number(words, section, 2) + number(words, value, 8) + number(words, 8, 8)

    table = row(1, 1, code + 0x20) + row(5, 0, code + 0x30) + row(1, 2, BASE)
    space = space_of(
        {
            BASE: bytes(0x10) + pointers(words, module + word, module + word),
            module: bytes(module_bytes),
            tables: pointers(words, rows) + number(words, 3).ljust(word, b"\0") + pointers(words, strings),
            strings: b"\0run\0kfree\0" + bytes(0x1000),
            rows: table + bytes(0x1000),
            code: bytes(0x1000),
        }
    )
    symbols = SymbolTable.from_symbols([(head, "d", "modules")])
    (found,) = run_steps(ModuleReader(symbols, module_structs(words), None).read(space))
    assert (found.name, found.ranges) == ("loop", ((code, code + 0x1000),))
    assert [(each.address, each.name) for each in found.symbols] == [(code + 0x20, "run")]
