"""Followed code: the frame that guestprof tells at each instruction of a ppc64el kernel, against what the compiler says in DWARF.

No guest runs: code and call frame information are those of the stock kernel's ``-dbg`` package, so that this sees all of the
kernel and not only where halts fall. See docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from elftools.dwarf.callframe import FDE, RegisterRule
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

from benchmarks._vmlinux import read_vmlinux
from benchmarks.accuracy import find_vmlinux
from guest.text import TextImage
from guestprof.debian import fetch_kernel
from recording.errors import GuestprofError
from tests.qemu.guests import PPC64EL as MACHINE
from unwind.arch.ppc64el import PPC64EL
from unwind.methods import frame_rows
from unwind.rules import Memory, Row
from unwind.sources import find_range

_SP, _LINK = 1, 65
"""DWARF numbers (ELFv2 ABI, table 2.25)."""
_SIZE = 4
_FILL = (0, 0x6000_0000, 0x6042_0000)
"""Between pieces of code, where DWARF goes on with the state of the piece before: nothing, ``nop``, ``ori r2,r2,0``."""
_SHOWN = 10


def read_frames(image: ELFFile) -> Iterator[tuple[int, bool, str]]:
    """By DWARF: (address of an instruction, whether there is a frame, where the return address is: "saved", "link", "rN")."""
    for entry in image.get_dwarf_info().CFI_entries():
        if not isinstance(entry, FDE):
            continue
        lines = entry.get_decoded().table
        ends = [line["pc"] for line in lines[1:]] + [entry["initial_location"] + entry["address_range"]]
        for line, end in zip(lines, ends, strict=True):
            cfa = line["cfa"]
            if cfa.expr is not None:
                continue
            place = _place(line.get(_LINK))
            for address in range(line["pc"], end, _SIZE):
                yield address, (cfa.reg, cfa.offset) != (_SP, 0), place


def _place(rule: RegisterRule | None) -> str:
    if rule is None or rule.type == RegisterRule.SAME_VALUE:
        return "link"
    return "saved" if rule.type == RegisterRule.OFFSET else f"r{rule.arg}"


def is_equal(row: Row, has_frame: bool, place: str) -> bool:
    """Whether a row says the same. In a prologue, a copy of the return address is as good as the link register, memory as both."""
    if (row.memory is Memory.BEFORE) != has_frame or row.expression is not None or row.return_address is None:
        return False
    base = row.return_address.base
    told = "saved" if base is None else "link" if base == "lr" else str(base)
    return told == place or (told, place) in (("link", "r0"), ("saved", "r0"), ("saved", "link"))


def measure(suite: str) -> tuple[int, Counter[str]]:
    """(instructions compared, differences by function). Raises GuestprofError."""
    path: Path = find_vmlinux(suite, MACHINE.name, fetch_kernel(suite, MACHINE.name).name.partition("-")[2])
    symbols = read_vmlinux(path).symbols
    with path.open("rb") as file:
        image = ELFFile(file)
        code = [each for each in image.iter_sections() if each["sh_flags"] & SH_FLAGS.SHF_EXECINSTR]
        text = TextImage([(each["sh_addr"], each.data()) for each in code if each["sh_type"] == "SHT_PROGBITS"])
        rows = frame_rows(PPC64EL, symbols, text)
        low, high = find_range(symbols, PPC64EL.kernel_code.entry_text)
        total, different = 0, Counter[str]()
        for address, has_frame, place in read_frames(image):
            word, symbol = text.read(address, _SIZE), symbols.find_at(address)
            if word is None or symbol is None or low <= address < high or int.from_bytes(word, "little") in _FILL:
                continue
            row = rows.find_row(address)
            total += 1
            if row is None or (row.return_address is not None and not is_equal(row, has_frame, place)):
                different[symbol.name] += 1
    return total, different


def main() -> int:
    """Run from the repository; exit status 1 if it cannot run or more than 2 of 1,000 instructions differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--suite", action="append", choices=MACHINE.suites, help="only this one's kernel (may be repeated)")
    options = parser.parse_args()
    is_good = True
    try:
        for suite in options.suite or MACHINE.suites:
            total, different = measure(suite)
            count = different.total()
            is_good = is_good and 1000 * count <= 2 * total
            share = f"{total - count} of {total} equal ({1 - count / total:.3%})"
            print(f"{MACHINE.name} {suite}: {share}; differ in {len(different)} functions")
            print("  " + ", ".join(f"{name} {number}" for name, number in different.most_common(_SHOWN)), flush=True)
    except GuestprofError as error:
        print(f"followed_code: {error}", file=sys.stderr)
        return 1
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
