"""VMCOREINFO notes: found at the start of a page, parsed within bounds."""

from __future__ import annotations

import pytest

from guest.memory import run_steps
from guest.vmcoreinfo import parse_vmcoreinfo, scan_vmcoreinfo
from recording.errors import BadImageError
from tests.builders.file_memory import BytesMemory

NOTE = (
    b"OSRELEASE=6.12.1-test\nBUILD-ID=00112233445566778899aabbccddeeff00112233\nPAGESIZE=4096\nSYMBOL(_stext)=ffffffff81000000\n"
    b"SYMBOL(init_top_pgt)=ffffffff82222000\nOFFSET(page.flags)=0\nNUMBER(phys_base)=-270532608\nNUMBER(VMALLOC_START)=0xffffd42500000000\n"
    b"KERNELOFFSET=1f600000\n"
)


def page(text: bytes) -> bytes:
    return text.ljust(0x1000, b"\0")


def test_a_note_is_parsed() -> None:
    note = parse_vmcoreinfo(page(NOTE), 0x5000)
    assert note.release == "6.12.1-test"
    assert note.build_id == "00112233445566778899aabbccddeeff00112233"
    assert note.symbols == {"_stext": 0xFFFF_FFFF_8100_0000, "init_top_pgt": 0xFFFF_FFFF_8222_2000}
    assert note.numbers == {"phys_base": -270532608, "VMALLOC_START": 0xFFFF_D425_0000_0000, "KERNELOFFSET": 0x1F60_0000}
    assert note.physical == 0x5000


@pytest.mark.parametrize(
    "text", [b"", b"OSRELEASE=", b"OSRELEASE=\n", b"OSRELEASE=" + b"x" * 65 + b"\n", b"OSRELEASE=6 \x1b[2J\n", b"\0OSRELEASE=6\n"]
)
def test_what_is_no_note_is_refused(text: bytes) -> None:
    with pytest.raises(BadImageError):
        parse_vmcoreinfo(page(text))


def test_odd_lines_are_left_out() -> None:
    text = b"OSRELEASE=6\nSYMBOL(a)=xyz\nSYMBOL(b)=\nNUMBER(c)=abc\nSYMBOL(d)=1ffffffffffffffff\nSYMBOL(e)=10\nBUILD-ID=../../etc\n"
    note = parse_vmcoreinfo(page(text))
    assert (note.symbols, note.numbers, note.build_id) == ({"e": 16}, {}, None)


def test_the_scan_looks_at_page_starts_and_asks_which_note_counts() -> None:
    ram = bytearray(0x80_0000)
    ram[0x3008:0x3012] = b"OSRELEASE="
    ram[0x5000 : 0x5000 + 0x1000] = page(NOTE.replace(b"6.12.1", b"6.12.0"))
    ram[0x60_0000:0x60_1000] = page(NOTE)
    memory = BytesMemory({0x10_0000: bytes(ram)})
    assert run_steps(scan_vmcoreinfo(memory, lambda note: True)).physical == 0x10_5000  # type: ignore[union-attr]
    found = run_steps(scan_vmcoreinfo(memory, lambda note: note.release == "6.12.1-test"))
    assert found is not None
    assert found.physical == 0x70_0000
    assert run_steps(scan_vmcoreinfo(memory, lambda note: False)) is None


def test_the_scan_survives_ram_that_ends_in_a_page() -> None:
    assert run_steps(scan_vmcoreinfo(BytesMemory({0x800: b"OSRELEASE=" * 300}), lambda note: True)) is None
