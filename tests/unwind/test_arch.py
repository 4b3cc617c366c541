"""Facts of each architecture, as literal cases."""

from __future__ import annotations

import pytest

from unwind.arch.x86_64 import X86_64


@pytest.mark.parametrize(
    ("before", "follows"),
    [
        ("90 90 e8 11 22 33 44", True),  # call rel32
        ("90 90 90 90 90 ff d0", True),  # call *%rax
        ("90 90 90 90 41 ff d3", True),  # call *%r11
        ("90 90 90 90 90 ff 13", True),  # call *(%rbx)
        ("90 90 90 90 ff 50 18", True),  # call *0x18(%rax)
        ("90 90 90 ff 54 24 08", True),  # call *8(%rsp)
        ("90 90 90 90 ff 14 24", True),  # call *(%rsp)
        ("ff 14 c5 00 10 60 82", True),  # call *table(,%rax,8)
        ("90 ff 15 11 22 33 44", True),  # call *0x44332211(%rip)
        ("90 ff 90 11 22 33 44", True),  # call *0x44332211(%rax)
        ("ff 94 24 11 22 33 44", True),  # call *0x44332211(%rsp)
        ("90 90 e9 11 22 33 44", False),  # jmp rel32
        ("90 90 90 90 90 ff e0", False),  # jmp *%rax
        ("90 90 90 90 90 90 c3", False),  # ret
        ("90 90 90 90 90 90 90", False),
    ],
)
def test_x86_64_follows_call(before: str, follows: bool) -> None:
    assert X86_64.kernel_code.follows_call(bytes.fromhex(before)) is follows


def test_x86_64_follows_call_needs_seven_bytes() -> None:
    assert not X86_64.kernel_code.follows_call(b"\xe8\x00\x00\x00\x00")


def test_x86_64_registers() -> None:
    assert sum(size for _name, size in X86_64.fixed_registers) == 236
    assert X86_64.kernel_code.trap.full["rip"] == 128
    assert X86_64.kernel_code.trap.full["rbp"] == 32
    assert X86_64.kernel_code.trap.full["rdi"] == 112
    assert X86_64.kernel_code.trap.partial == {"rip": 0, "cs": 8, "eflags": 16, "rsp": 24, "ss": 32}


def test_x86_64_page_table_root_with_kpti_and_pcid() -> None:
    """A user table and its PCID (bits 0 to 12) lead to the kernel's table beside it."""
    assert X86_64.paging.roots({"cr3": 0x8000_0000_022A_B801}) == (0x22A_A000, 0x22A_B000)
    assert X86_64.paging.roots({"cr3": 0x22A_A801}) == (0x22A_A000,)
    assert X86_64.paging.tables({"cr4": 1 << 12}).index_bits == (9, 9, 9, 9, 9)
    assert X86_64.paging.tables({"cr4": 0x6F0}).index_bits == (9, 9, 9, 9)


def test_x86_64_interrupt_gate() -> None:
    gate = bytes.fromhex("e00a 1000 008e 8081 ffffffff 00000000")
    memory = {0xFFFF_FE00_0000_0000: gate, 0xFFFF_FFFF_8180_0AE0: b"\xf3"}
    assert X86_64.image_mark({}, lambda address, size: memory.get(address)) == 0xFFFF_FFFF_8180_0AE0
    assert X86_64.image_mark({}, lambda address, size: gate if size == 16 else None) is None
    assert X86_64.image_mark({}, lambda address, size: None) is None
