"""Register layouts from target descriptions, and values from ``g`` replies."""

from __future__ import annotations

import json

import pytest

from recording.errors import BadRecordingError, StubError, UnsupportedTargetError
from sampler.halt import Batch
from sampler.rsp.registers import (
    Register,
    RegisterFile,
    RegisterLayout,
    TargetDescription,
    choose_architecture,
    layout_of,
    parse_target_description,
    system_registers_of,
)
from unwind.arch.arm64 import ARM64
from unwind.arch.registry import find_architecture
from unwind.arch.x86_64 import X86_64

TARGET = b"""<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd">
<target><architecture>i386:x86-64</architecture><xi:include href="core.xml"/><xi:include href="more.xml"/></target>"""
CORE = b"""<?xml version="1.0"?><!DOCTYPE feature SYSTEM "gdb-target.dtd">
<feature name="org.gnu.gdb.i386.core">
  <flags id="f" size="4"><field name="CF" start="0" end="0"/></flags>
  <reg name="rax" bitsize="64" type="int64" regnum="0"/>
  <reg name="rip" bitsize="64" type="code_ptr"/>
  <!-- <reg name="cs_base" bitsize="64" type="int64"/> -->
  <reg name="eflags" bitsize="32" type="f"/>
</feature>"""
MORE = b"""<feature name="more"><reg name="late" bitsize="32" regnum="9"/><reg name="st0" bitsize="80" regnum="5"/></feature>"""
FILES = {"target.xml": TARGET, "core.xml": CORE, "more.xml": MORE}

LAYOUT = RegisterLayout((Register("rax", 0, 8), Register("rip", 8, 8), Register("eflags", 16, 4)), "little")
RAW = bytes.fromhex("0100000000000000000000800100000046020000")


def test_includes_are_followed_and_commented_registers_are_not_there() -> None:
    assert parse_target_description(FILES.__getitem__) == TargetDescription(
        "i386:x86-64", ((0, "rax", 8), (1, "rip", 8), (2, "eflags", 4), (5, "st0", 10), (9, "late", 4))
    )


def test_a_g_reply_holds_only_the_first_registers() -> None:
    description = parse_target_description(FILES.__getitem__)
    assert RegisterLayout.from_description(description, "little", 30).registers == (
        Register("rax", 0, 8),
        Register("rip", 8, 8),
        Register("eflags", 16, 4),
        Register("st0", 20, 10),
    )
    assert RegisterLayout.from_description(description, "little", 20) == LAYOUT


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"target.xml": b"<target>"}, "damaged"),
        ({"target.xml": b'<target><xi:include href="target.xml"/></target>'}, "includes more than 64 files"),
        ({"target.xml": b'<target><reg name="a" bitsize="-1"/></target>'}, "gives register 'a' the bitsize '-1'"),
        ({"target.xml": b'<target><reg name="a"/></target>'}, "gives register 'a' the bitsize None"),
        ({"target.xml": b'<target><reg name="a" bitsize="99999999"/></target>'}, "bitsize '99999999'"),
        ({"target.xml": b"<target>" + b'<reg name="a" bitsize="8"/>' * 4097 + b"</target>"}, "more than 4096 registers"),
        ({"target.xml": b'<!DOCTYPE t [<!ENTITY a "b">]><target>&a;</target>'}, "damaged"),
    ],
)
def test_damaged_descriptions_are_refused(files: dict[str, bytes], message: str) -> None:
    with pytest.raises(StubError, match=message):
        parse_target_description(files.__getitem__)


def test_fixed_layout_of_x86_64_has_the_stubs_offsets() -> None:
    offsets = {name: register.offset for name, register in RegisterLayout.from_fixed(X86_64).index.items()}
    assert (offsets["rip"], offsets["eflags"], offsets["cs"], offsets["fs_base"], offsets["k_gs_base"]) == (128, 136, 140, 164, 180)
    assert (offsets["cr0"], offsets["cr3"], offsets["efer"]) == (188, 204, 228)


def test_values_are_decoded_in_the_targets_byte_order() -> None:
    file = RegisterFile(LAYOUT, RAW.hex().encode())
    assert dict(file) == {"rax": 1, "rip": 0x1_8000_0000, "eflags": 0x246}
    big = RegisterLayout(LAYOUT.registers, "big")
    assert RegisterFile(big, RAW.hex().encode())["rax"] == 0x0100_0000_0000_0000
    assert file.raw == RAW
    assert dict(RegisterFile.from_raw(LAYOUT, RAW)) == dict(file)


def test_values_of_the_other_byte_order() -> None:
    file = RegisterFile(LAYOUT, RAW.hex().encode()).reversed()
    assert dict(file) == {"rax": 1 << 56, "rip": 0x80_0100_0000, "eflags": 0x4602_0000}
    assert dict(file.reversed()) == {"rax": 1, "rip": 0x1_8000_0000, "eflags": 0x246}


def test_registers_that_are_not_available_are_not_in_the_other_order_either() -> None:
    file = RegisterFile(LAYOUT, b"01" + b"00" * 7 + b"xx" * 8 + b"46020000").reversed()
    assert dict(file) == {"rax": 1 << 56, "eflags": 0x4602_0000}


def test_unavailable_registers_are_absent() -> None:
    file = RegisterFile(LAYOUT, b"01" + b"00" * 7 + b"xx" * 8 + b"46020000")
    assert dict(file) == {"rax": 1, "eflags": 0x246}
    assert len(file) == 2
    assert "rip" not in file
    with pytest.raises(KeyError):
        file["rip"]
    with pytest.raises(KeyError):
        file["nonesuch"]
    assert file.raw == bytes.fromhex("0100000000000000000000000000000046020000")


def test_a_short_reply_lacks_its_last_registers() -> None:
    assert dict(RegisterFile(LAYOUT, RAW.hex().encode()[:-2])) == {"rax": 1, "rip": 0x1_8000_0000}


def test_a_reply_that_is_no_dump_is_the_stubs_fault() -> None:
    with pytest.raises(StubError, match="no register dump"):
        RegisterFile(LAYOUT, b"PacketSize=1000;qXfer:features:read+;x")["rax"]


def test_the_first_register_of_a_name_counts() -> None:
    layout = RegisterLayout((Register("a", 0, 1), Register("a", 1, 1)), "little")
    assert dict(RegisterFile(layout, b"0102")) == {"a": 1}


def test_layout_survives_json() -> None:
    assert RegisterLayout.from_json(json.loads(json.dumps(LAYOUT.to_json()))) == LAYOUT


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"byteorder": "middle", "registers": []},
        {"byteorder": "little", "registers": [["a", 0]]},
        {"byteorder": "little", "registers": [["a", -1, 8]]},
        {"byteorder": "little", "registers": [["a", 0, 0]]},
    ],
)
def test_a_damaged_layout_is_the_recordings_fault(value: object) -> None:
    with pytest.raises(BadRecordingError, match="register layout is damaged"):
        RegisterLayout.from_json(value)


@pytest.mark.parametrize("name", ["x86_64", "i386:x86-64"])
def test_architectures_are_found_by_gdbs_and_qemus_names(name: str) -> None:
    assert find_architecture(name) is X86_64


def test_unknown_architectures_are_none() -> None:
    assert find_architecture("or1k") is None


def test_the_description_names_the_architecture() -> None:
    assert choose_architecture(TargetDescription("i386:x86-64", ()), "aarch64", 608) is X86_64
    assert choose_architecture(TargetDescription("", ()), "x86_64", 608) is X86_64
    assert choose_architecture(None, None, 608) is X86_64


@pytest.mark.parametrize(
    ("description", "hint", "g_size", "message"),
    [
        (TargetDescription("or1k", ()), None, 344, "'or1k', which guestprof cannot profile yet"),
        (None, "hppa", 512, "'hppa', which guestprof cannot profile yet"),
        (None, None, 100, "does not say which architecture"),
    ],
)
def test_other_architectures_are_refused_by_name(
    description: TargetDescription | None, hint: str | None, g_size: int, message: str
) -> None:
    with pytest.raises(UnsupportedTargetError, match=message):
        choose_architecture(description, hint, g_size)


def test_a_layout_without_the_registers_that_unwinding_needs_is_refused() -> None:
    with pytest.raises(UnsupportedTargetError, match="has no rsp, rbp"):
        layout_of(TargetDescription("i386:x86-64", ((0, "rip", 8),)), X86_64, 8)
    with pytest.raises(UnsupportedTargetError, match="236 bytes long"):
        layout_of(None, X86_64, 100)


SYSTEM = tuple((200 + index, names[-1], 8) for index, names in enumerate(ARM64.system_registers))


def test_system_registers_are_found_by_the_names_of_either_version() -> None:
    numbers = system_registers_of(TargetDescription("aarch64", ((0, "x0", 8), *SYSTEM)), ARM64)
    assert numbers == tuple((200 + index, names[0], 8) for index, names in enumerate(ARM64.system_registers))
    assert system_registers_of(None, X86_64) == ()


def test_a_stub_without_system_registers_is_refused_by_their_name() -> None:
    with pytest.raises(UnsupportedTargetError, match="TTBR1_EL1"):
        system_registers_of(TargetDescription("aarch64", tuple(each for each in SYSTEM if each[1] != "TTBR1_EL1")), ARM64)


def test_system_registers_lie_behind_the_others() -> None:
    layout = LAYOUT.with_registers(((200, "SCTLR", 8), (7, "small", 4)), 24)
    assert layout.registers[3:] == (Register("SCTLR", 24, 8), Register("small", 32, 4))
    batch = Batch()
    found: dict[int, RegisterFile] = {}
    batch.add(b"$g#67", 0)
    batch.add(b"$pc8#0", 0, 8)
    batch.add(b"$p7#0", 0, 4)
    batch.sort([RAW.hex().encode() + b"0" * 8, b"05" + b"00" * 7, b"E14"], lambda reply: RegisterFile(layout, reply), found, {})
    assert dict(found[0]) == {"rax": 1, "rip": 0x1_8000_0000, "eflags": 0x246, "SCTLR": 5}


def test_other_values_of_registers() -> None:
    layout = LAYOUT.with_registers(((0, "epc", 4),), 24)
    file = RegisterFile(layout, RAW.hex().encode()).with_values({"epc": 0x1_8000_0004, "rip": 7})
    assert dict(file) == {"rax": 1, "rip": 7, "eflags": 0x246, "epc": 0x8000_0004}
    assert RegisterFile.from_raw(layout, file.raw)["epc"] == 0x8000_0004
    assert "epc" not in RegisterFile(layout, RAW.hex().encode()).with_values({"rip": 7})
