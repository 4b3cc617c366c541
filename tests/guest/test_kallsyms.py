"""Symbol tables of every generation, with and without being told where they are, and damaged ones."""

from __future__ import annotations

import struct
from array import array
from dataclasses import replace

import pytest

from guest.kallsyms import KallsymsPlace, decode_kallsyms, place_from_symbols, read_kallsyms
from guest.kallsyms_scan import find_kallsyms
from guest.memory import run_steps
from guest.paging import AddressSpace
from guest.symbol_rows import SymbolRows, arrange
from recording.errors import BadImageError, GuestMemoryError
from tests.builders.file_memory import BytesMemory
from tests.builders.kallsyms import GENERATIONS, Generation, build_kallsyms
from tests.builders.page_tables import FOUR_LEVELS, PageTables
from tests.builders.words import LITTLE_64
from unwind.arch.x86_64 import X86_64

IMAGE = 0xFFFF_FFFF_8100_0000
PHYSICAL = 0x100_0000
RODATA = IMAGE + 0x5010
LONG_NAME = "".join(chr(ord("a") + index % 26) for index in range(300))
PERCPU = [(0, "A", "fixed_percpu_data"), (0x35000, "A", "pcpu_hot")]
TEXT = [
    (IMAGE, "T", "_stext"),
    (IMAGE, "T", "_text"),
    (IMAGE, "T", "startup_64"),
    (IMAGE + 0x10, "t", "__pfx_do_one"),
    (IMAGE + 0x20, "t", "do_one"),
    (IMAGE + 0x40, "T", "__irqentry_text_end"),
    (IMAGE + 0x40, "t", "local_alias"),
    (IMAGE + 0x40, "W", "weak_alias"),
    (IMAGE + 0x40, "T", "real_name"),
    *((IMAGE + 0x100 + 16 * index, "t", f"do_some_long_function_name_{index:04}") for index in range(700)),
    (IMAGE + 0x4000, "D", "linux_banner"),
]


def symbols_for(generation: Generation) -> list[tuple[int, str, str]]:
    percpu = PERCPU if generation.values in ("percpu", "absolute") else []
    long_name = [(IMAGE + 0x4100, "t", LONG_NAME)] if generation.is_wide else []
    return [*percpu, *TEXT, *long_name]


def space_with(image: bytes) -> AddressSpace:
    tables = PageTables(0x10_0000)
    tables.map(IMAGE, PHYSICAL, size=0x20_0000)
    memory = BytesMemory({0x10_0000: bytes(tables.memory), PHYSICAL: image.ljust(0x20_0000, b"\0")})
    return AddressSpace(memory, FOUR_LEVELS, tables.root)


def decode(space: AddressSpace, place: KallsymsPlace, anchors: dict[str, int] | None = None) -> SymbolRows:
    tables = run_steps(read_kallsyms(space, place))
    return run_steps(decode_kallsyms(space, tables, {"_stext": IMAGE} if anchors is None else anchors, LITTLE_64))


def image_of(generation: Generation) -> tuple[bytes, dict[str, int]]:
    """An image whose tables lie behind decoys: other digits, a rising table."""
    blob, parts = build_kallsyms(symbols_for(generation), generation, RODATA)
    decoy = b"".join(bytes((digit, 0)) for digit in b"0123456789") * 2 + struct.pack("<4I", 0, 4096, 8192, 12288)
    return decoy.ljust(RODATA - IMAGE, b"\0") + blob, parts


@pytest.mark.parametrize("name", GENERATIONS)
def test_tables_are_found_in_the_image_and_decoded(name: str) -> None:
    generation = GENERATIONS[name]
    image, parts = image_of(generation)
    space = space_with(image)
    place = run_steps(find_kallsyms(space, IMAGE, LITTLE_64))
    assert place is not None
    assert place.names == parts["kallsyms_names"]
    assert place.token_table == parts["kallsyms_token_table"]
    assert place.count == len(symbols_for(generation))
    table = decode(space, place).table()
    assert len(table) == place.count - 1
    assert table.find("__pfx_do_one") is None
    for symbol_name, address in {
        "startup_64": IMAGE,
        "do_one": IMAGE + 0x20,
        "do_some_long_function_name_0699": IMAGE + 0x2CB0,
    }.items():
        symbol = table.find(symbol_name)
        assert symbol is not None
        assert symbol.address == address
    if generation.values in ("percpu", "absolute"):
        hot = table.find("pcpu_hot")
        assert hot is not None
        assert (hot.address, hot.kind) == (0x35000, "A")
    if generation.is_wide:
        assert table.find(LONG_NAME) is not None


@pytest.mark.parametrize("name", ["6.12", "6.15", "7.2"])
def test_tables_are_decoded_from_where_the_note_says(name: str) -> None:
    image, parts = image_of(GENERATIONS[name])
    space = space_with(image)
    place = place_from_symbols(space, parts, LITTLE_64)
    assert place is not None
    assert place.count == len(symbols_for(GENERATIONS[name]))
    assert decode(space, place).find("do_one") == IMAGE + 0x20


def test_a_note_without_the_symbols_names_no_place() -> None:
    assert place_from_symbols(space_with(b""), {"kallsyms_names": IMAGE}, LITTLE_64) is None


def test_the_best_alias_comes_first_and_all_are_found_by_name() -> None:
    image, parts = image_of(GENERATIONS["6.12"])
    space = space_with(image)
    place = place_from_symbols(space, parts, LITTLE_64)
    assert place is not None
    table = decode(space, place).table()
    covering = table.find_at(IMAGE + 0x44)
    assert covering is not None
    assert covering.name == "real_name"
    names = [symbol.name for symbol in table if symbol.address == IMAGE + 0x40]
    assert names == ["real_name", "weak_alias", "local_alias", "__irqentry_text_end"]
    start = table.find_at(IMAGE)
    assert start is not None
    assert start.name == "startup_64"


@pytest.mark.parametrize(
    "boundary",
    "_text _stext _etext _sinittext _einittext __init_begin __irqentry_text_end __softirqentry_text_end __indirect_thunk_start "
    "__entry_text_end __noinstr_text_start __start_orc_unwind __stop_orc_unwind __bss_stop".split(),
)
def test_a_boundary_never_shadows_a_function(boundary: str) -> None:
    rows = SymbolRows(array("Q", [16, 16]), b"Tt", [boundary, "some_function"])
    assert run_steps(arrange(rows)).names == ["some_function", boundary]


def test_an_address_table_that_puts_no_anchor_right_is_refused() -> None:
    image, parts = image_of(GENERATIONS["6.12"])
    space = space_with(image)
    place = place_from_symbols(space, parts, LITTLE_64)
    assert place is not None
    with pytest.raises(BadImageError, match="_stext did not come out right"):
        decode(space, place, {"_stext": IMAGE + 8})


def test_names_that_do_not_meet_their_markers_are_refused() -> None:
    image, parts = image_of(GENERATIONS["6.12"])
    damaged = bytearray(image)
    damaged[parts["kallsyms_markers"] - IMAGE + 4] ^= 1
    space = space_with(bytes(damaged))
    place = place_from_symbols(space, parts, LITTLE_64)
    assert place is not None
    with pytest.raises(BadImageError, match="markers"):
        decode(space, place)
    assert run_steps(find_kallsyms(space, IMAGE, LITTLE_64)) is None


@pytest.mark.parametrize(
    "change", [{"count": 0}, {"count": 1 << 31}, {"names": IMAGE - (1 << 32)}, {"names": 1 << 64}, {"token_index": IMAGE}]
)
def test_impossible_sizes_are_refused(change: dict[str, int]) -> None:
    image, parts = image_of(GENERATIONS["6.12"])
    space = space_with(image)
    place = place_from_symbols(space, parts, LITTLE_64)
    assert place is not None
    with pytest.raises(BadImageError, match="damaged or of an unknown format"):
        decode(space, replace(place, **change))


@pytest.mark.parametrize("count", [1, 300, 1 << 20])
def test_a_wrong_count_is_refused(count: int) -> None:
    image, parts = image_of(GENERATIONS["6.12"])
    space = space_with(image)
    place = place_from_symbols(space, parts, LITTLE_64)
    assert place is not None
    with pytest.raises(BadImageError):
        decode(space, replace(place, count=count))


def test_a_token_index_that_leaves_the_table_is_refused() -> None:
    image, parts = image_of(GENERATIONS["6.12"])
    damaged = bytearray(image)
    at = parts["kallsyms_token_index"] - IMAGE
    damaged[at : at + 512] = b"\xff" * 512
    space = space_with(bytes(damaged))
    place = place_from_symbols(space, parts, LITTLE_64)
    assert place is not None
    with pytest.raises(BadImageError, match="token table"):
        decode(space, place)


def test_control_characters_in_tokens_become_question_marks() -> None:
    symbols = [*TEXT, (IMAGE + 0x5000, "t", "evil\x1b[2Jname\n")]
    blob, parts = build_kallsyms(symbols, GENERATIONS["6.12"], IMAGE)
    space = space_with(blob)
    place = place_from_symbols(space, parts, LITTLE_64)
    assert place is not None
    assert decode(space, place).names[-1] == "evil?[2Jname?"


def test_unmapped_tables_are_a_memory_error() -> None:
    with pytest.raises(GuestMemoryError):
        run_steps(read_kallsyms(space_with(b""), KallsymsPlace(10, 0x1000, 0x2000, 0x3000, 0x3100)))


def test_an_image_of_zeros_or_of_digits_holds_no_table() -> None:
    digits = b"".join(bytes((digit, 0)) for digit in b"0123456789")
    assert run_steps(find_kallsyms(space_with(b""), IMAGE, LITTLE_64)) is None
    assert run_steps(find_kallsyms(space_with(digits * 200), IMAGE, LITTLE_64)) is None


def test_rows_move_in_one_range_only_and_survive_the_cache() -> None:
    image, parts = image_of(GENERATIONS["6.12"])
    space = space_with(image)
    place = place_from_symbols(space, parts, LITTLE_64)
    assert place is not None
    rows = decode(space, place)
    again = SymbolRows.from_bytes(rows.to_bytes())
    assert (again.addresses, again.kinds, again.names) == (rows.addresses, rows.kinds, rows.names)
    moved = rows.moved(-0x100_0000, *X86_64.kernel_image)
    assert moved.find("do_one") == 0xFFFF_FFFF_8000_0020
    assert moved.find("pcpu_hot") == 0x35000
    assert moved.moved(0x100_0000, *X86_64.kernel_image).addresses == rows.addresses


@pytest.mark.parametrize("cut", [0, 4, 16, -1])
def test_damaged_rows_are_refused(cut: int) -> None:
    rows = SymbolRows.from_bytes(struct.pack("<IIQ", 1, 3, 16) + b"Tabc")
    assert rows.names == ["abc"]
    with pytest.raises(BadImageError):
        SymbolRows.from_bytes(rows.to_bytes()[:cut])
