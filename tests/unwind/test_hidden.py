"""Where architectures know more than the stub tells, and when: literal registers and code."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

import pytest

from unwind.arch import Architecture
from unwind.arch.arm64 import ARM64
from unwind.arch.armhf import ARMHF
from unwind.arch.mips64el import MIPS64EL
from unwind.arch.mipsel import MIPSEL
from unwind.arch.ppc64el import PPC64EL
from unwind.hidden import EntryRun, MonitorRegisters

USER, IRQ, SUPERVISOR, ABORT = 0x10, 0x192, 0x193, 0x197


def code_at(start: int, *instructions: int) -> dict[int, int]:
    return {start + 4 * index: word for index, word in enumerate(instructions)}


ARM_CODE = {
    **code_at(0xFFFF_0018, 0xEA00_0488),  # b 0xffff1240: vector_bhb_loop8_irq, which joins vector_irq behind its loop
    **code_at(0xFFFF_1240, 0xE24E_E004, 0xE88D_4001, 0xE3A0_0008, 0xEAFF_FFFF, 0xE250_0001, 0x1AFF_FFFC, 0xF57F_F047, 0xEAFF_FF72),
    **code_at(0xFFFF_102C, 0xE14F_E000, 0xE58D_E008, 0xE10F_0000, 0xE220_0001, 0xE16F_F000, 0xE20E_E00F, 0xE1A0_000D, 0xE79F_E10E),
    **code_at(0xFFFF_104C, 0xE1B0_F00E, 0xC030_0EE0, 0xC030_0AC0, 0xC030_0AC0, 0xC030_0B80),  # movs pc, lr
    # __irq_usr: sub sp; stmib sp, {r1-r12}; ldm r0, {r3-r5}; stmdb r0, {sp, lr}^; bl
    **code_at(0xC030_0EE0, 0xE24D_D048, 0xE98D_1FFE, 0xE890_0038, 0xE940_6000, 0xEB09_9E00),
    # __irq_svc: sub sp; tst sp; bne 0xc0300c64; subne sp; bcc 0xc0300ba0; mov r0, r1; bl; and where bcc goes, bl
    **code_at(0xC030_0B80, 0xE24D_D050, 0xE31D_0A02, 0x1A00_0035, 0x124D_D004, 0x3A00_0002, 0xE1A0_0001, 0xEB2F_3A58, 0xEA00_0001),
    **code_at(0xC030_0BA0, 0xEB2E_0000),
    **code_at(0xC030_0C64, 0xE24D_D048, 0xEB00_1000),
}


def reading(words: Mapping[int, int]) -> Callable[[int, int], bytes | None]:
    def read(address: int, size: int) -> bytes | None:
        assert address // 4096 == (address + size - 1) // 4096
        return b"".join(struct.pack("<I", words.get(address + at, 0xE320_F000)) for at in range(0, size, 4))

    return read


def landings(pc: int, mode: int, words: Mapping[int, int] = ARM_CODE) -> tuple[int, ...]:
    assert isinstance(ARMHF.hidden, EntryRun)
    return ARMHF.hidden.landings({"pc": pc, "cpsr": mode}, reading(words))


@pytest.mark.parametrize("pc", [0xFFFF_0018, 0xFFFF_1240, 0xFFFF_1254, 0xFFFF_104C])
def test_armhf_comes_to_the_first_call_on_any_way(pc: int) -> None:
    assert landings(pc, IRQ) == (0xC030_0B98, 0xC030_0BA0, 0xC030_0C68, 0xC030_0EF0)


def test_armhf_elsewhere_or_in_another_mode() -> None:
    assert landings(0xC030_0B80, IRQ) == ()
    assert landings(0xFFFF_0018, SUPERVISOR) == landings(0xFFFF_0FE0, USER) == ()


@pytest.mark.parametrize(
    "changes",
    [
        code_at(0xFFFF_1248, 0xE8BD_8000),  # another way out: ldm with pc
        code_at(0xFFFF_104C, 0xE1A0_F00E),  # mov pc, lr
        code_at(0xC030_0EE8, 0xE1B0_F00E),  # before a call
        code_at(0xC030_0B98, 0xE12F_FF1E),  # bx lr on one of the ways
        code_at(0xC030_0EF0, 0xEAFF_FFFF),  # no call anywhere near
    ],
)
def test_armhf_code_that_may_go_elsewhere_is_not_run(changes: dict[int, int]) -> None:
    assert landings(0xFFFF_0018, IRQ, ARM_CODE | changes) == ()


def test_armhf_code_that_cannot_be_read() -> None:
    assert isinstance(ARMHF.hidden, EntryRun)
    assert ARMHF.hidden.landings({"pc": 0xFFFF_0018, "cpsr": IRQ}, lambda _address, _size: None) == ()


def test_armhf_vectors_and_their_stubs_have_names() -> None:
    places = ARMHF.kernel_code.entry_places
    assert places is not None
    found = list(places(lambda _name: None, reading(ARM_CODE)))
    assert [(name, start) for name, start, _end in found if start < 0xFFFF_1000] == [
        (f"vector_{name}", 0xFFFF_0000 + 4 * index)
        for index, name in enumerate(("rst", "und", "swi", "pabt", "dabt", "addrexcptn", "irq", "fiq"))
    ]
    # What the mitigation makes of vector_irq, and the stub itself.
    assert [place for place in found if place[1] >= 0xFFFF_1000] == [
        ("vector_irq", 0xFFFF_1240, 0xFFFF_1260),
        ("vector_irq", 0xFFFF_1020, 0xFFFF_1050),
    ]
    plain = ARM_CODE | code_at(0xFFFF_0018, 0xEA00_0400)  # b 0xffff1020
    assert [place for place in places(lambda _name: None, reading(plain)) if place[1] >= 0xFFFF_1000] == [
        ("vector_irq", 0xFFFF_1020, 0xFFFF_1050)
    ]
    assert list(places(lambda _name: None, lambda _address, _size: None)) == []


def mips(architecture: Architecture, name: str, offset: int, **registers: int) -> Mapping[str, int] | None:
    given = {"status": 0x1400_0403, "epc": 0x8012_3456, "pc": 0x8058_2200, "sp": 0x8346_BB60, **registers}
    return architecture.kernel_code.taken_exception(name, offset, given)


@pytest.mark.parametrize("architecture", [MIPSEL, MIPS64EL])
def test_mips_at_a_vector_epc_is_what_was_interrupted(architecture: Architecture) -> None:
    for pc, name, offset in (
        *((0x8058_2000 + at, "", 0) for at in (0x000, 0x080, 0x180, 0x200, 0x300, 0x900)),
        (0x8058_2900, "except_vec_vi", 0),
        (0x8058_2024, "tlb_refill", 0x24),  # which uses $k0 and $k1 alone
        (0x8012_0024, "handle_tlbl", 0x24),
    ):
        taken = mips(architecture, name, offset, pc=pc)
        assert taken is not None
        assert (taken["pc"], taken["sp"], taken["status"], taken["saved_status"]) == (
            0x8012_3456,
            0x8346_BB60,
            0x1400_0401,
            0x1400_0403,
        )
        assert not architecture.is_user(taken)
        assert not architecture.kernel_code.in_entry(taken)
    user = mips(architecture, "handle_sys", 0, status=0x2400_A413)
    assert user is not None
    assert architecture.is_user(user)


@pytest.mark.parametrize(
    ("name", "offset", "registers"),
    [
        ("", 0, {"pc": 0x8058_2240}),  # the interrupt's code has moved the stack pointer
        ("handle_int", 4, {}),
        ("except_vec_vi", 4, {}),
        ("handle_cpu_int", 0, {}),  # behind what saves the registers
        ("restore_partial", 0, {}),
        ("handle_sys", 0, {"status": 0x1400_0401}),
        ("handle_sys", 0, {"status": 0x1400_0407}),  # the error level
    ],
)
def test_mips_elsewhere_it_is_not_known(name: str, offset: int, registers: dict[str, int]) -> None:
    assert mips(MIPSEL, name, offset, **registers) is None
    assert MIPSEL.kernel_code.taken_exception("handle_sys", 0, {"status": 0x1400_0403, "pc": 0, "sp": 0}) is None


@pytest.mark.parametrize(
    ("architecture", "size", "set_handler"),
    [
        # lui s2, 0x82a1; move; move; lw a0, 9572(s2), as they stand in set_handler
        (MIPSEL, 4, "a182123c 25808000 2588c000 6425448e"),
        # lui s2, 0x830a; ld v0, 18296(s2)
        (MIPS64EL, 8, "0a83123c 784742de"),
    ],
)
def test_mips_vectors_have_names(architecture: Architecture, size: int, set_handler: str) -> None:
    function, parse = architecture.kernel_code.data_in_code["ebase"]
    variable = parse(bytes.fromhex(set_handler))
    assert (function, variable) == ("set_handler", 0x82A1_2564 if size == 4 else 0xFFFF_FFFF_830A_4778)
    assert parse(b"") is None
    base, handler = 0x805B_8000, 0x8010_40F0
    memory = {variable: base.to_bytes(size, "little")}
    memory |= dict.fromkeys((handler, base + 0x200, base + 0x900), b"handler.")
    symbols = {"ebase": variable, "except_vec_vi": handler}
    places = architecture.kernel_code.entry_places
    assert places is not None
    assert list(places(symbols.get, lambda address, _size: memory.get(address))) == [
        ("tlb_refill", base, base + 0x100),
        ("except_vec2_generic", base + 0x100, base + 0x180),
        ("except_vec3_generic", base + 0x180, base + 0x200),
        ("except_vec_vi", base + 0x200, base + 0x300),
        ("except_vec_vi", base + 0x900, base + 0xA00),
    ]
    del memory[base + 0x200], memory[base + 0x900]
    assert list(places(symbols.get, lambda address, _size: memory.get(address)))[3:] == [
        ("except_vec4", base + 0x200, base + 0x300)
    ]
    for word in (bytes(size), b"\1" * size):
        memory[variable] = word
        assert list(places(symbols.get, lambda address, _size: memory.get(address))) == []
    assert list(places(symbols.get, lambda _address, _size: None)) == []
    assert list(places(lambda _name: None, lambda _address, count: bytes(count))) == []


def ask(architecture: Architecture) -> MonitorRegisters:
    assert isinstance(architecture.hidden, MonitorRegisters)
    return architecture.hidden


def test_mips_asks_amid_exceptions_alone() -> None:
    assert ask(MIPSEL).is_needed({"status": 0x1400_0403})
    assert not ask(MIPSEL).is_needed({"status": 0x1400_0401})


@pytest.mark.parametrize(
    ("registers", "is_needed"),
    [
        ({"pc": 0xC000_0000_0000_4900}, True),
        ({"pc": 0xC000_0000_0000_4900, "srr0": 5, "srr1": 6}, False),
        ({"pc": 0xC000_0000_0000_4914}, False),
        ({"pc": 0xC000_0000_0012_4900}, False),
        ({"pc": 0xC000_0000_0000_3000}, False),  # scv: LR and CTR tell
    ],
)
def test_ppc64el_asks_at_vectors_where_the_stub_does_not_tell(registers: dict[str, int], is_needed: bool) -> None:
    assert ask(PPC64EL).is_needed(registers) is is_needed


GENERAL = {f"x{number}": number for number in range(31)}
TABLE = 0xFFFF_FBFF_FDBF_7800


@pytest.mark.parametrize(
    ("pc", "unknown"),
    [
        (TABLE + 0x400, set()),
        (TABLE + 0x480, set()),
        (TABLE + 0x41C, {"x0", "x30"}),  # on the way in
        (TABLE + 0x824, {"x29", "x30"}),  # tramp_exit
        (0xFFFF_FFFF_FF5B_7000, {"x29", "x30"}),
    ],
)
def test_arm64_trampoline_has_the_programs_registers(pc: int, unknown: set[str]) -> None:
    """Whether it has a name or not."""
    registers = {**GENERAL, "pc": pc, "sp": 0xFFFF_8000_0874_4000, "cpsr": 0x3C5, "VBAR_EL1": TABLE}
    registers |= {"ELR_EL1": 0x41_6410, "SPSR_EL1": 0x6000_0000, "SP_EL0": 0xFFFF_C8F8_A160}
    taken = ARM64.kernel_code.taken_exception("", 0, registers)
    assert taken == {
        **{name: value for name, value in GENERAL.items() if name not in unknown},
        "pc": 0x41_6410,
        "sp": 0xFFFF_C8F8_A160,
        "cpsr": 0x6000_0000,
    }
    assert ARM64.kernel_code.taken_exception("", 0, registers | {"SPSR_EL1": 0x6000_0005}) is None
    assert ARM64.kernel_code.taken_exception("", 0, registers | {"pc": 0xFFFF_8000_0801_0000}) is None
