"""Facts of each architecture, as literal cases."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

from unwind import arch
from unwind.arch import Architecture
from unwind.arch.arm64 import ARM64
from unwind.arch.armhf import ARMHF
from unwind.arch.i386 import I386
from unwind.arch.m68k import M68K
from unwind.arch.mips64el import MIPS64EL
from unwind.arch.mips_be import MIPS
from unwind.arch.mipsel import MIPSEL
from unwind.arch.powerpc import POWERPC
from unwind.arch.ppc64el import PPC64EL
from unwind.arch.registry import find_architecture
from unwind.arch.riscv64 import RISCV64
from unwind.arch.s390x import S390X
from unwind.arch.x86_64 import X86_64
from unwind.machine_code import Flow, FrameState
from unwind.user_abi import UserAbi


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


@pytest.mark.parametrize("name", ["arm64", "aarch64"])
def test_names_of_arm64(name: str) -> None:
    assert find_architecture(name) is ARM64


@pytest.mark.parametrize(
    ("before", "follows"),
    [
        ("11 00 00 94", True),  # bl
        ("ff ff ff 97", True),  # bl backwards
        ("20 00 3f d6", True),  # blr x1
        ("3f 08 3f d6", True),  # blraaz x1
        ("3f 0c 3f d6", True),  # blrabz x1
        ("22 08 3f d7", True),  # blraa x1, x2
        ("11 00 00 14", False),  # b
        ("20 00 1f d6", False),  # br x1
        ("c0 03 5f d6", False),  # ret
        ("1f 20 03 d5", False),  # nop
        ("00 00 94", False),
    ],
)
def test_arm64_follows_call(before: str, follows: bool) -> None:
    assert ARM64.kernel_code.follows_call(bytes.fromhex(before)) is follows


def test_arm64_call_targets() -> None:
    assert ARM64.kernel_code.link is not None
    target = ARM64.kernel_code.link.target
    assert target(0xFFFF_8000_8001_0000, bytes.fromhex("11000094")) == 0xFFFF_8000_8001_0044
    assert target(0xFFFF_8000_8001_0000, bytes.fromhex("ffffff97")) == 0xFFFF_8000_8000_FFFC
    assert target(0xFFFF_8000_8001_0000, bytes.fromhex("20003fd6")) is None


@pytest.mark.parametrize(
    ("code", "sets"),
    [("fd030091", True), ("fd430091", True), ("3f2303d5 fd7bbda9 fd030091", True), ("3f2303d5 fd7bbda9", False), ("", False)],
)
def test_arm64_sets_frame(code: str, sets: bool) -> None:
    assert ARM64.kernel_code.sets_frame(bytes.fromhex(code)) is sets


@pytest.mark.parametrize(
    ("registers", "is_trap"),
    [
        ({"cpsr": 0x8000_0000, "pc": 0x40_1000, "sp": 0xFFFF_FFFF_0000}, True),
        ({"cpsr": 0x6000_0010, "pc": 0x1_0000, "sp": 0xFF00_0000}, True),  # AArch32
        ({"cpsr": 0x6040_0005, "pc": 0xFFFF_8000_8001_0000, "sp": 0xFFFF_8000_0A00_0000}, True),
        ({"cpsr": 0x6040_0005, "pc": 0x40_1000, "sp": 0xFFFF_8000_0A00_0000}, False),
        ({"cpsr": 0, "pc": 0xFFFF_8000_8001_0000, "sp": 0}, False),
        ({"cpsr": 0x13, "pc": 0x1_0000, "sp": 0x1000}, False),
        ({"cpsr": 0xFFFF_8000_0000_0000, "pc": 0, "sp": 0}, False),
    ],
)
def test_arm64_is_trap(registers: dict[str, int], is_trap: bool) -> None:
    assert ARM64.kernel_code.is_trap(registers) is is_trap


def test_arm64_system_call_numbers() -> None:
    number = ARM64.kernel_code.system_call_number
    assert number({"syscallno": 0x6040_0005_0000_003F}) == 63
    assert number({"syscallno": 0x0000_0000_FFFF_FFFF}) == -1
    assert number({}) is None
    assert ARM64.kernel_code.trap.full["syscallno"] == 280
    assert ARM64.kernel_code.trap.full["cpsr"] == ARM64.kernel_code.trap.partial_at + ARM64.kernel_code.trap.partial["cpsr"]


def test_x86_64_system_call_numbers() -> None:
    number = X86_64.kernel_code.system_call_number
    assert number({"orig_rax": 0x4000_0001}) == 0x4000_0001
    assert number({"orig_rax": (1 << 64) - 2}) == -1
    assert number({}) is None


@pytest.mark.parametrize("name", ["riscv64", "riscv:rv64"])
def test_names_of_riscv64(name: str) -> None:
    assert find_architecture(name) is RISCV64


@pytest.mark.parametrize(
    ("before", "follows"),
    [
        ("e7 80 80 67", True),  # jalr ra, 1656(ra), behind auipc
        ("e7 00 03 00", True),  # jalr ra, 0(t1)
        ("ef 00 00 02", True),  # jal ra
        ("01 00 02 93", True),  # c.jalr t1
        ("01 00 82 95", True),  # c.jalr a1
        ("ef 02 c0 0e", False),  # jal t0
        ("67 80 80 67", False),  # jalr zero
        ("01 00 82 80", False),  # ret
        ("01 00 02 90", False),  # c.ebreak
        ("01 00 01 00", False),  # nop
        ("6f f0 5f fd", False),  # j
        ("02 93", False),
    ],
)
def test_riscv64_follows_call(before: str, follows: bool) -> None:
    assert RISCV64.kernel_code.follows_call(bytes.fromhex(before)) is follows


@pytest.mark.parametrize(
    ("code", "target"),
    [
        ("97 30 ff ff e7 80 80 67", 0xFFFF_FFFF_80A7_49D8),  # auipc ra; jalr ra, …(ra)
        ("01 00 01 00 ef 00 00 02", 0xFFFF_FFFF_80A8_1384),  # jal ra, +0x20
        ("01 00 01 00 ef f0 df ff", 0xFFFF_FFFF_80A8_1360),  # jal ra, -4
        ("97 32 ff ff e7 80 82 67", None),  # auipc t0; jalr ra, …(t0): long calls are made with ra
        ("01 00 01 00 01 00 82 95", None),
    ],
)
def test_riscv64_call_targets(code: str, target: int | None) -> None:
    assert RISCV64.kernel_code.link is not None
    assert RISCV64.kernel_code.link.target(0xFFFF_FFFF_80A8_1360, bytes.fromhex(code)) == target


@pytest.mark.parametrize(
    ("code", "height", "saves"),
    [
        ("1d 71 a2 e8 a6 e4 80 10 ca e0 86 ec", 96, True),  # addi sp,-96; sd s0; sd s1; addi s0,sp,96; sd s2; sd ra,88(sp)
        ("1d 71 a2 e8 a6 e4 80 10 ca e0", 96, False),
        ("1d 71 a2 e8 a6 e4", None, False),
        ("13 04 01 43 23 3c 11 2c", 1072, True),  # the same two in four bytes each
        ("13 01 01 bd", None, False),  # addi sp,sp,-1072
        ("00 00", None, False),
        ("", None, False),
    ],
)
def test_riscv64_prologues(code: str, height: int | None, saves: bool) -> None:
    kernel_code = RISCV64.kernel_code
    assert kernel_code.frame_height(bytes.fromhex(code)) == height
    assert kernel_code.sets_frame(bytes.fromhex(code)) is (height is not None)
    assert kernel_code.saves_link(bytes.fromhex(code)) is saves


@pytest.mark.parametrize(
    ("registers", "is_trap"),
    [
        ({"sstatus": 0x8000_0002_0000_6020, "pc": 0x1_2344, "sp": 0x3F_FFF0_0000}, True),
        ({"sstatus": 0x2_0000_0120, "pc": 0xFFFF_FFFF_8001_0000, "sp": 0xFF20_0000_0000_3F00}, True),
        ({"sstatus": 0x2_0000_0120, "pc": 0x1_2344, "sp": 0xFF20_0000_0000_3F00}, False),
        ({"sstatus": 0x2_0000_0020, "pc": 0xFFFF_FFFF_8001_0000, "sp": 0}, False),
        ({"sstatus": 0x2_0000_0122, "pc": 0xFFFF_FFFF_8001_0000, "sp": 0xFF20_0000_0000_3F00}, False),
        ({"sstatus": 0xFFFF_FFFF_8001_0000, "pc": 0, "sp": 0}, False),
        ({"sstatus": 0x3_0000_0020, "pc": 0, "sp": 0}, False),
    ],
)
def test_riscv64_is_trap(registers: dict[str, int], is_trap: bool) -> None:
    assert RISCV64.kernel_code.is_trap(registers) is is_trap


def test_riscv64_modes() -> None:
    """Saved registers tell by sstatus, a vCPU's by its mode, whatever it has saved."""
    assert RISCV64.is_user({"priv": 0, "sstatus": 0x120})
    assert not RISCV64.is_user({"priv": 1, "sstatus": 0x20})
    assert not RISCV64.is_user({"priv": 3, "sstatus": 0x20})
    assert RISCV64.is_user({"sstatus": 0x20})
    assert not RISCV64.is_user({"sstatus": 0x120})


def test_riscv64_running_task() -> None:
    task, user = 0xFF60_0000_0234_5000, 0x3F_F7E1_2340
    pointer = RISCV64.running_task.pointer
    assert pointer({"sscratch": 0, "tp": task}) == task
    assert pointer({"sscratch": task, "tp": user}) == task
    assert pointer({"sscratch": user, "tp": task}) == task  # behind the first instruction of the handler
    assert pointer({"sscratch": 0, "tp": 0}) is None


def test_riscv64_system_call_numbers() -> None:
    number = RISCV64.kernel_code.system_call_number
    assert number({"scause": 8, "a7": 63}) == 63
    assert number({"scause": 13, "a7": 63}) == -1
    assert number({"scause": 1 << 63 | 5, "a7": 63}) == -1
    assert number({"scause": 8, "a7": (1 << 64) - 1}) == -1
    assert number({}) is None
    assert RISCV64.kernel_code.trap.full["a7"] == 136
    assert RISCV64.kernel_code.trap.full["t6"] == 248


@pytest.mark.parametrize(("name", "architecture"), [("i386", I386), ("i386:x86-64", X86_64), ("x86_64", X86_64)])
def test_names_of_x86(name: str, architecture: Architecture) -> None:
    assert find_architecture(name) is architecture


def test_i386_page_tables() -> None:
    """With PAE and without; PTI's table of user mode is behind the kernel's, and tables without PTI may lie at any 32 bytes."""
    assert I386.paging.roots({"cr3": 0x1F7_B000, "cr4": 0x6B0}) == (0x1F7_A000, 0x1F7_B000)
    assert I386.paging.roots({"cr3": 0x1F7_A020, "cr4": 0x6B0}) == (0x1F7_A020,)
    assert I386.paging.roots({"cr3": 0x1F7_A018, "cr4": 0x690}) == (0x1F7_A000,)
    assert I386.paging.tables({"cr4": 0x6B0}).index_bits == (9, 9, 2)
    assert (I386.paging.tables({"cr4": 0x690}).index_bits, I386.paging.tables({"cr4": 0x690}).entry_size) == ((10, 10), 4)


def test_i386_interrupt_gate() -> None:
    memory = {0xFF40_0000: bytes.fromhex("a4b36000008e90c6"), 0xC690_B3A4: b"\x6a"}
    assert I386.image_mark({}, lambda address, size: memory.get(address)) == 0xC690_B3A4
    assert I386.image_mark({}, lambda address, size: bytes(8) if size == 8 else b"x") is None
    assert I386.image_mark({}, lambda address, size: None) is None


@pytest.mark.parametrize(("cs", "cr0", "is_user"), [(0x73, 0x8005_0033, True), (0x60, 0x8005_0033, False), (0x9003, 0x10, False)])
def test_i386_user_mode(cs: int, cr0: int, is_user: bool) -> None:
    """In real mode a selector has no privilege level."""
    assert I386.is_user({"cs": cs, "cr0": cr0}) is is_user


def test_i386_trap_frame() -> None:
    trap = I386.kernel_code.trap
    assert (trap.size, trap.full["ebp"], trap.full["orig_eax"], trap.full["eip"], trap.full["ss"]) == (68, 20, 44, 48, 64)
    assert trap.full["eip"] == trap.partial_at + trap.partial["eip"]
    assert I386.kernel_code.system_call_number({"orig_eax": 0xFFFF_FFFF}) == -1
    assert I386.kernel_code.system_call_number({"orig_eax": 383}) == 383


def test_i386_call_targets() -> None:
    assert I386.kernel_code.link is not None
    target = I386.kernel_code.link.target
    assert target(0xC600_0010, bytes.fromhex("e8fbffffff")) == 0xC600_0010
    assert target(0xC600_0010, bytes.fromhex("e800000001")) == 0xC700_0015
    assert target(0xC600_0010, bytes.fromhex("90909090ff")) is None


@pytest.mark.parametrize(
    ("code", "has_left"),
    [("5d c3", True), ("90 c3", True), ("5d e9", True), ("c9 ff", True), ("5d eb", True), ("90 e9", False), ("5d 90", False)],
)
def test_i386_has_left_frame(code: str, has_left: bool) -> None:
    before, after = bytes.fromhex(code)[:1], bytes.fromhex(code)[1:]
    assert I386.kernel_code.has_left_frame(before, after) is has_left


@pytest.mark.parametrize("name", ["s390x", "s390:64-bit"])
def test_names_of_s390x(name: str) -> None:
    assert find_architecture(name) is S390X


@pytest.mark.parametrize(
    ("before", "follows"),
    [
        ("c0 e5 00 00 01 00", True),  # brasl %r14
        ("07 00 a7 e5 00 10", True),  # bras %r14
        ("07 00 07 00 0d e1", True),  # basr %r14,%r1
        ("c0 05 00 00 01 00", False),  # brasl %r0, which calls ftrace
        ("c0 f4 00 00 01 00", False),  # jg
        ("07 00 a7 f4 00 10", False),  # j
        ("07 00 07 00 0d 11", False),  # basr %r1,%r1
        ("07 00 07 00 07 fe", False),  # br %r14
        ("00 e5 00 00 01 00", False),
        ("e5 00 00 01 00", False),
    ],
)
def test_s390x_follows_call(before: str, follows: bool) -> None:
    assert S390X.kernel_code.follows_call(bytes.fromhex(before)) is follows


@pytest.mark.parametrize(
    ("mask", "is_trap", "is_user"),
    [
        (0x0705_1001_8000_0000, True, True),
        (0x0705_2000_8000_0000, True, True),  # addresses of 31 bits
        (0x0705_5001_8000_0000, True, True),  # access-register mode
        (0x0704_E001_8000_0000, True, False),
        (0x0404_C001_8000_0000, True, False),
        (0x0705_D001_8000_0000, False, True),  # programs are not in the kernel's space
        (0x0704_2001_8000_0000, False, False),  # nor the kernel in theirs
        (0x0704_E000_8000_0000, False, False),
        (0x0714_E001_8000_0000, False, False),  # with a key of its own
        (0x0004_C001_8000_0000, False, False),  # without DAT
        (0x0705_1001_8000_0001, False, True),
        (0x8705_1001_8000_0000, False, True),
    ],
)
def test_s390x_program_status(mask: int, is_trap: bool, is_user: bool) -> None:
    registers = {"pswm": mask, "pswa": 0x1_0010, "r15": 0x3FF_0000}
    assert S390X.kernel_code.is_trap(registers) is is_trap
    assert S390X.is_user(registers) is is_user
    assert not S390X.kernel_code.is_trap({**registers, "pswa": 0x1_0011})


def test_s390x_trap_frame() -> None:
    trap = S390X.kernel_code.trap
    assert (trap.size, trap.full["pswm"], trap.full["pswa"], trap.full["r0"], trap.full["r15"]) == (200, 8, 16, 24, 144)
    assert trap.full["r15"] == trap.partial_at + trap.partial["r15"]
    assert S390X.kernel_code.chain is not None
    assert S390X.interrupt_stacks.word_at == 0x4000 - 360 + S390X.kernel_code.chain.word


def test_s390x_system_calls() -> None:
    code = S390X.kernel_code
    assert code.system_call_number({"flags": 1, "int_code": 0x0002_00DE_0000_0000}) == 222
    assert code.system_call_number({"flags": 0, "int_code": 0x0004_0011_0000_0000}) == -1
    assert code.system_call_number({}) is None
    assert code.is_32bit_process({"pswm": 0x0705_2000_8000_0000})
    assert not code.is_32bit_process({"pswm": 0x0705_2001_8000_0000})


def test_s390x_handler_of_program_checks_marks_the_image() -> None:
    psw = bytes.fromhex("0404c00180000000 000003ffff40d8a0")
    assert S390X.image_mark({}, lambda address, size: psw if (address, size) == (0x1D0, 16) else None) == 0x3FF_FF40_D8A0
    assert S390X.image_mark({}, lambda address, size: None) is None


@pytest.mark.parametrize(("name", "size", "frame"), [("mipsel", 292, 184), ("mips64el", 584, 304)])
def test_mips_layouts(name: str, size: int, frame: int) -> None:
    architecture = find_architecture(name)
    assert architecture is not None
    word = architecture.pointer_size
    assert sum(each for _name, each in architecture.fixed_registers) == size
    assert [each for each, _size in architecture.fixed_registers][31:38] == ["ra", "status", "lo", "hi", "badvaddr", "cause", "pc"]
    trap = architecture.kernel_code.trap
    assert (trap.size, trap.full["pc"]) == (frame, frame - word)
    assert trap.full["saved_status"] == frame - 6 * word
    assert trap.full["sp"] == frame - 9 * word


@pytest.mark.parametrize(
    ("before", "follows"),
    [
        ("00 00 40 0c 00 00 00 00", True),  # jal
        ("09 f8 40 00 00 00 00 00", True),  # jalr v0
        ("01 00 11 04 00 00 00 00", True),  # bal
        ("00 00 00 00 00 00 40 0c", False),  # a call behind it
        ("00 00 40 08 00 00 00 00", False),  # j
        ("08 00 e0 03 00 00 00 00", False),  # jr ra
        ("00 00 40 0c", False),
    ],
)
def test_mips_follows_call(before: str, follows: bool) -> None:
    assert MIPSEL.kernel_code.follows_call(bytes.fromhex(before)) is follows


def test_mips_image_lies_below_the_pc_behind_empty_bytes() -> None:
    """The copy in front of it, which KASLR left behind, does not count; nor does an exception, or code without interrupts."""
    image = {0x8010_0000: b"\0" * 0x400 + b"\1\0\0\0", 0x8117_0000: b"\0" * 0x400 + b"\1\0\0\0"}

    def read(address: int, size: int) -> bytes | None:
        return next((data[address - at :][:size] for at, data in image.items() if at <= address < at + len(data)), b"\2" * size)

    assert MIPSEL.image_mark({"pc": 0x8118_1234, "status": 0x1000_0001}, read) == 0x8117_0400
    for pc, status in ((0x8118_1234, 0x1000_0000), (0x8118_1234, 0x1000_0003), (0x0040_0000, 0x11), (0xC000_1000, 0x1000_0001)):
        assert MIPSEL.image_mark({"pc": pc, "status": status}, read) is None


def test_mips_task_of_the_kernel_and_of_user_mode() -> None:
    head = MIPSEL.running_task.head
    assert head({"status": 0x1000_0001, "gp": 0x8350_0000}) == 0x8350_0000
    assert head({"status": 0x1000_0003, "gp": 0x8350_0000}) is None  # $gp may still be the program's
    assert head({"status": 0x11, "gp": 0x4A_0000}) is None
    # lui k1, 0x8216; lw sp, 0x2364(k1), as they stand in handle_int
    code = bytes.fromhex("16821b3c c2d51a00 21d87a03 64237d8f")
    assert MIPSEL.kernel_code.data_in_code["kernelsp"][1](code) == 0x8216_2364
    # lui k1, 0x830b; ld sp, 0x43e8(k1)
    assert MIPS64EL.kernel_code.data_in_code["kernelsp"][1](bytes.fromhex("0b831b3c e8437ddf")) == 0xFFFF_FFFF_830B_43E8
    assert MIPSEL.kernel_code.data_in_code["kernelsp"][1](b"") is None


def test_mips_system_call_numbers() -> None:
    number = MIPS64EL.kernel_code.system_call_number
    assert number({"v0": 5003, "cause": 8 << 2}) == 3
    assert number({"v0": 4003, "cause": 8 << 2}) == 3
    assert number({"v0": 5003, "cause": 2 << 2}) == -1
    assert number({"v0": 0, "cause": 8 << 2}) == -1
    assert number({}) is None


@pytest.mark.parametrize("name", ["armhf", "arm"])
def test_names_of_armhf(name: str) -> None:
    assert find_architecture(name) is ARMHF


@pytest.mark.parametrize(
    ("before", "follows"),
    [
        ("11 00 00 eb", True),  # bl
        ("11 00 00 1b", True),  # blne
        ("33 ff 2f e1", True),  # blx r3
        ("11 00 00 fa", True),  # blx
        ("05 f0 a0 11", True),  # movne pc, r5
        ("05 f0 a0 e1", False),  # mov pc, r5
        ("11 00 00 ea", False),  # b
        ("1e ff 2f e1", False),  # bx lr
        ("0e f0 a0 e1", False),  # mov pc, lr
        ("00 00 a0 e1", False),  # nop
        ("11 00 00 fb", True),  # blx, in the middle of a word
        ("00 00 eb", False),
    ],
)
def test_armhf_follows_call(before: str, follows: bool) -> None:
    assert ARMHF.kernel_code.follows_call(bytes.fromhex(before)) is follows


def test_armhf_call_targets() -> None:
    assert ARMHF.kernel_code.link is not None
    target = ARMHF.kernel_code.link.target
    assert target(0xC030_0000, bytes.fromhex("110000eb")) == 0xC030_004C
    assert target(0xC030_0000, bytes.fromhex("feffffeb")) == 0xC030_0000
    assert target(0xC030_0000, bytes.fromhex("33ff2fe1")) is None
    assert target(0xC030_0000, bytes.fromhex("110000fb")) is None


@pytest.mark.parametrize(
    ("registers", "is_trap"),
    [
        ({"cpsr": 0x6000_0030, "pc": 0x1_2344, "sp": 0xBEFF_F000}, True),
        ({"cpsr": 0x6000_0010, "pc": 0xFFFF_0FE0, "sp": 0xBEFF_F000}, True),  # __kuser_get_tls
        ({"cpsr": 0x6000_0010, "pc": 0xC030_0000, "sp": 0xBEFF_F000}, False),
        ({"cpsr": 0x6000_0010, "pc": 0x1_2344, "sp": 0xE081_5F00}, False),
        ({"cpsr": 0x6000_0013, "pc": 0xC030_0000, "sp": 0xE081_5F00}, True),
        ({"cpsr": 0x6000_0013, "pc": 0xBF00_1000, "sp": 0xE081_5F00}, True),  # a module
        ({"cpsr": 0x6000_0013, "pc": 0x1_2344, "sp": 0xE081_5F00}, False),
        ({"cpsr": 0x6000_0192, "pc": 0xC030_0000, "sp": 0xE081_5F00}, False),
    ],
)
def test_armhf_is_trap(registers: dict[str, int], is_trap: bool) -> None:
    assert ARMHF.kernel_code.is_trap(registers) is is_trap


def test_armhf_system_call_numbers() -> None:
    number = ARMHF.kernel_code.system_call_number
    assert number({"r0": 3, "r7": 3, "orig_r0": 3}) == 3
    assert number({"r0": 0xFFFF_FFFF, "r7": 114, "orig_r0": 0xFFFF_FFFF}) == 114  # wait4(-1, ...)
    assert number({"r0": 3, "r7": 3, "orig_r0": 0xFFFF_FFFF}) == -1
    assert number({}) is None
    assert ARMHF.kernel_code.trap.full["orig_r0"] == 68
    assert ARMHF.kernel_code.trap.full["pc"] == 60


def test_armhf_tells_the_entry_task_by_code() -> None:
    """As Debian's ``vector_swi`` does it: mrc, movw, movt, ldr, mcr."""
    function, parse = ARMHF.kernel_code.data_in_code["__entry_task"]
    assert function == "vector_swi"
    code = "00005de2 90af1dee 4cc00fe3 53c14ce3 0ca09ae7 70af0dee"
    assert parse(bytes.fromhex(code)) == 0xC153_F04C
    assert parse(bytes.fromhex(code)[:-1]) is None
    assert parse(bytes.fromhex(code.replace("53c14c", "53c15c"))) is None


def test_armhf_image_is_marked_by_its_system_call_entry() -> None:
    memory = {0xFFFF_1000: (0xC030_01E0).to_bytes(4, "little")}
    assert ARMHF.image_mark({}, lambda address, _size: memory.get(address)) == 0xC030_01E0
    assert ARMHF.image_mark({}, lambda _address, _size: None) is None


def test_armhf_current_is_not_the_programs() -> None:
    pointer = ARMHF.running_task.pointer
    assert pointer({"cpsr": 0x13, "TPIDRURO": 0xC265_07C0}) == 0xC265_07C0
    assert pointer({"cpsr": 0x10, "TPIDRURO": 0xC265_07C0}) is None
    assert pointer({"cpsr": 0x13, "TPIDRURO": 0xB6F0_04C0}) is None


@pytest.mark.parametrize("name", ["ppc64el", "ppc64", "powerpc:common64"])
def test_names_of_ppc64el(name: str) -> None:
    assert find_architecture(name) is PPC64EL


@pytest.mark.parametrize(
    ("before", "follows"),
    [
        ("11 00 00 48", True),  # bl
        ("fd ff ff 4b", True),  # bl backwards
        ("71 fd e2 41", True),  # beql+
        ("21 04 80 4e", True),  # bctrl
        ("21 00 80 4e", True),  # blrl
        ("05 00 9f 42", False),  # bcl 20,31,.+4 asks for the pc
        ("10 00 00 48", False),  # b
        ("70 fd e2 41", False),  # beq+
        ("02 00 00 44", False),  # sc
        ("20 04 80 4e", False),  # bctr
        ("20 00 80 4e", False),  # blr
        ("00 00 00 60", False),  # nop
        ("00 00 48", False),
    ],
)
def test_ppc64el_follows_call(before: str, follows: bool) -> None:
    assert PPC64EL.kernel_code.follows_call(bytes.fromhex(before)) is follows


def test_ppc64el_call_targets() -> None:
    assert PPC64EL.kernel_code.link is not None
    target = PPC64EL.kernel_code.link.target
    assert target(0xC000_0000_0001_0000, bytes.fromhex("11000048")) == 0xC000_0000_0001_0010
    assert target(0xC000_0000_0001_0000, bytes.fromhex("fdffff4b")) == 0xC000_0000_0000_FFFC
    assert target(0xC000_0000_0001_0000, bytes.fromhex("2104804e")) is None


@pytest.mark.parametrize(
    ("code", "before", "after"),
    [
        ("d1ff21f8", FrameState(), FrameState(48)),  # stdu r1,-48(r1)
        ("d1ff21f8", FrameState(32), FrameState(80)),
        ("30002138", FrameState(48), FrameState()),  # addi r1,r1,48
        ("30003f38", FrameState(48, is_saved=True), FrameState(is_saved=True)),  # addi r1,r31,48
        ("d0ff2138", FrameState(48), FrameState(48)),  # addi r1,r1,-48
        ("000021e8", FrameState(48), FrameState()),  # ld r1,0(r1)
        ("100021e8", FrameState(48), FrameState(48)),  # ld r1,16(r1)
        ("100001f8", FrameState(), FrameState(is_saved=True)),  # std r0,16(r1)
        ("100001f8", FrameState(48), FrameState(48)),
        ("400001f8", FrameState(48), FrameState(48, is_saved=True)),  # std r0,64(r1)
        ("100001e8", FrameState(is_saved=True), FrameState(is_saved=True, copy="r0")),  # ld r0,16(r1)
        ("a602087c", FrameState(), FrameState(copy="r0")),  # mflr r0
        ("a602087c", FrameState(48, is_saved=True), FrameState(48, is_saved=True)),  # what a call left there
        ("11000048", FrameState(), FrameState()),  # bl
        ("a603087c", FrameState(is_saved=True, copy="r0"), FrameState(copy="r0")),  # mtlr r0
        ("a603687c", FrameState(48, copy="r0"), FrameState(48, copy="r0", is_link_used=True)),  # mtlr r3
        ("a603687c", FrameState(48, is_saved=True), FrameState(48, is_saved=True, is_link_used=True)),
        ("a603097c", FrameState(48, is_saved=True), FrameState(48, is_saved=True)),  # mtctr r0
        ("913f3ff8", FrameState(48), FrameState(48, next_stack=31)),  # stdu r1,16272(r31)
        ("78fbe17f", FrameState(48, next_stack=31), FrameState(48, is_on_other=True)),  # mr r1,r31
        ("78f3c17f", FrameState(48, next_stack=31), FrameState(48, next_stack=31)),  # mr r1,r30
        ("780b217c", FrameState(48), FrameState(48)),  # mr r1,r1: a hint
        ("000021e8", FrameState(48, is_on_other=True), FrameState(48)),
        ("00000060", FrameState(), FrameState()),
    ],
)
def test_ppc64el_steps(code: str, before: FrameState, after: FrameState) -> None:
    assert PPC64EL.kernel_code.machine_code is not None
    assert PPC64EL.kernel_code.machine_code.step(before, bytes.fromhex(code)) == after


@pytest.mark.parametrize(
    ("code", "flow"),
    [
        ("10000048", Flow(0x1010, goes_on=False)),  # b
        ("fcffff4b", Flow(0xFFC, goes_on=False)),
        ("11000048", Flow(None, goes_on=True)),  # bl
        ("18008241", Flow(0x1018, goes_on=True)),  # beq
        ("f0ff8240", Flow(0xFF0, goes_on=True)),  # bne backwards
        ("2000804e", Flow(None, goes_on=False)),  # blr
        ("2000824d", Flow(None, goes_on=True)),  # beqlr
        ("2004804e", Flow(None, goes_on=False, is_computed=True)),  # bctr
        ("2104804e", Flow(None, goes_on=True)),  # bctrl
        ("2400004c", Flow(None, goes_on=False)),  # rfid
        ("0800e07f", Flow(None, goes_on=False, is_trap=True)),  # trap
        ("0000e00f", Flow(None, goes_on=False, is_trap=True)),  # twui r0,0
        ("0000090b", Flow(None, goes_on=True)),  # tdnei r9,0
        ("00000060", Flow(None, goes_on=True)),
    ],
)
def test_ppc64el_flow(code: str, flow: Flow) -> None:
    assert PPC64EL.kernel_code.machine_code is not None
    assert PPC64EL.kernel_code.machine_code.flow(0x1000, bytes.fromhex(code)) == flow


def test_ppc64el_system_call_numbers() -> None:
    number = PPC64EL.kernel_code.system_call_number
    assert number({"r0": 3, "trap": 0x3000}) == 3
    assert number({"r0": 0xFFFF_FFFF_0000_0004, "trap": 0xC01}) == 4
    assert number({"r0": 4, "trap": 0x900}) == -1
    assert number({}) is None


def test_ppc64el_registers_of_a_big_endian_moment() -> None:
    """Firmware runs big-endian, and QEMU sends the registers of a vCPU in the order of its mode."""
    assert PPC64EL.is_other_byteorder({"msr": int.from_bytes(bytes.fromhex("8000000000001000"), "little")})
    assert not PPC64EL.is_other_byteorder({"msr": 0x8000_0000_0000_1033})
    assert not PPC64EL.is_other_byteorder({})


@pytest.mark.parametrize(
    ("before", "follows"),
    [
        ("4eb9 0001 0128", True),  # jsr address
        ("4e71 4eb8 1000", True),  # jsr address.w
        ("4e71 4eba 0010", True),  # jsr d16(pc)
        ("4e71 4ea8 0010", True),  # jsr d16(a0)
        ("4e71 4e71 4e90", True),  # jsr (a0)
        ("61ff 0000 0010", True),  # bsr.l
        ("4e71 6100 0010", True),  # bsr.w
        ("4e71 4e71 6110", True),  # bsr.b
        ("4e71 4e71 4e75", False),  # rts
        ("4e71 4e71 4ed0", False),  # jmp (a0)
        ("4e71 4e71 6010", False),  # bra
    ],
)
def test_m68k_follows_call(before: str, follows: bool) -> None:
    assert M68K.kernel_code.follows_call(bytes.fromhex(before)) is follows


@pytest.mark.parametrize(
    ("before", "follows"),
    [
        ("4bffffc9", True),  # bl
        ("4e800421", True),  # bctrl
        ("4e800021", True),  # blrl
        ("42000011", True),  # bdnzl
        ("4bffffc8", False),  # b
        ("4e800420", False),  # bctr
        ("7c000039", False),  # and.
    ],
)
def test_powerpc_follows_call(before: str, follows: bool) -> None:
    assert POWERPC.kernel_code.follows_call(bytes.fromhex(before)) is follows


def test_m68k_exception_frames() -> None:
    words = {0x1000: 0x2000_0001, 0x1004: 0x0128_0064, 0x2000: 0x2000_0001, 0x2004: 0x0128_F064}
    assert M68K.images.pushed_exception is not None
    assert M68K.images.pushed_exception(0x1000, 4, {}, words.get) == {"pc": 0x1_0128, "sp": 0x1008}
    assert M68K.images.pushed_exception(0x2000, 4, {}, words.get) is None
    assert M68K.images.pushed_exception(0x3000, 4, {}, words.get) is None


def test_mips_is_mipsel_with_words_the_other_way_round() -> None:
    assert find_architecture("mips") is MIPS
    assert MIPS.kernel_code.follows_call(bytes.fromhex("0c004003 00000000"))  # jal
    assert not MIPS.kernel_code.follows_call(bytes.fromhex("0340000c 00000000"))
    decode, little = MIPS.user_abis[0].decode, MIPSEL.user_abis[0].decode
    assert decode is not None
    assert little is not None
    assert decode(0x8010_0000, bytes.fromhex("27bdffe8")) == little(0x8010_0000, bytes.fromhex("e8ffbd27"))


FILES = sorted(path for path in Path(arch.__file__).parent.glob("*.py") if "Architecture(" in path.read_text("utf-8"))
FACTS = (
    arch.Architecture,
    arch.KernelCode,
    UserAbi,
    arch.PagingFormat,
    arch.PageTables,
    arch.InterruptStacks,
    arch.RunningTask,
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_read_line_for_line_alike(path: Path) -> None:
    """Facts are named in the order in which they are described, and none is left out (but the rarities of page tables)."""
    orders = {kind.__name__: [field.name for field in dataclasses.fields(kind)] for kind in FACTS}
    found = 0
    for call in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id not in orders:
            continue
        named = [keyword.arg for keyword in call.keywords]
        order = orders[call.func.id]
        assert named == [name for name in order if name in named or call.func.id != "PageTables"], call.func.id
        found += call.func.id == "Architecture"
    assert found == 1
