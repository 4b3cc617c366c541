"""A machine of a few megabytes with a kernel in it: page tables, code, symbol tables, unwind tables, per-CPU areas."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from tests.builders.file_memory import BytesMemory
from tests.builders.kallsyms import GENERATIONS, build_kallsyms
from tests.builders.page_tables import PageTables

PHYSICAL = 0x100_0000
TABLES = 0x20_0000
NOTE = 0x10_3000
PERCPU = 0xFFFF_8880_0000_0000
PERCPU_PHYSICAL = 0x40_0000
ESTACKS = 0xFFFF_FE00_0000_9000
RELEASE = "6.12.1-test"
BUILD_ID = "00112233445566778899aabbccddeeff00112233"
BANNER = f"Linux version {RELEASE} (builder@test) (gcc 1.2) #1 SMP Tue Nov 23 2026"
REAL_MODE = {"cr0": 0x10, "cr3": 0, "cr4": 0, "efer": 0, "cs": 0xF000, "rip": 0xFFF0}
ORC_ENTRY = struct.pack("<hhH", 8, 0, 0x205)
LAYOUT = {
    "text": 0,
    "init": 0x4000,
    "banner": 0x6000,
    "notes": 0x6400,
    "orc_ip": 0x6800,
    "orc": 0x6900,
    "orc_header": 0x6A00,
    "state": 0x6C00,
    "offsets": 0x6D00,
    "cpu_ids": 0x6E00,
    "kallsyms": 0x8000,
}
ORC_HEADER = bytes.fromhex("fe5d32bf581bd63b2ca9a5c65ba5a625eab3fe24")


class Machine:
    """``image``: where KASLR put the kernel; the tables of the vCPU are also its own (init_top_pgt)."""

    def __init__(self, image: int = 0xFFFF_FFFF_8100_0000, generation: str = "6.12", system_state: int = 4, cpus: int = 2) -> None:
        self.image = image
        self.cpus = cpus
        self.tables = PageTables(TABLES)
        self.tables.map(image, PHYSICAL, size=0x20_0000)
        self.tables.map(image + 0x30_0000, TABLES)
        self.tables.map(PERCPU, PERCPU_PHYSICAL, size=0x20_0000)
        for page in (0, 1, 3, 4):
            self.tables.map(ESTACKS + 0x1000 + page * 0x1000, PERCPU_PHYSICAL + 0x10_0000 + page * 0x1000)
        self.symbols = self._symbols()
        self.kallsyms, self.parts = build_kallsyms(self.symbols, GENERATIONS[generation], self.at("kallsyms"))
        content = bytearray(0x20_0000)
        content[:0x3000] = b"\xe8\0\0\0\0\x90\x90\xc3" * 0x600
        content[0x4000:0x5000] = b"\xcc" * 0x1000
        for name, data in {
            "banner": BANNER.encode() + b"\n\0",
            "notes": struct.pack("<III", 4, 2, 1)
            + b"Xen\0ab\0\0"
            + struct.pack("<III", 4, 20, 3)
            + b"GNU\0"
            + bytes.fromhex(BUILD_ID),
            "orc_ip": struct.pack("<4i", *(LAYOUT["text"] + 0x100 * i - LAYOUT["orc_ip"] - 4 * i for i in range(4))),
            "orc": ORC_ENTRY * 4,
            "orc_header": ORC_HEADER,
            "state": struct.pack("<I", system_state),
            "offsets": struct.pack(f"<{cpus}Q", *(PERCPU + 0x1_0000 * cpu for cpu in range(cpus))).ljust(64, b"\0"),
            "cpu_ids": struct.pack("<I", cpus),
            "kallsyms": self.kallsyms,
        }.items():
            content[LAYOUT[name] : LAYOUT[name] + len(data)] = data
        percpu = bytearray(0x20_0000)
        for cpu in range(cpus):
            hot = struct.pack("<5Q", 0, 1, 0, PERCPU + 0x2_0000, PERCPU + 0x8_3FF8 + 0x1_0000 * cpu)
            percpu[0x1_0000 * cpu + 0x40 : 0x1_0000 * cpu + 0x40 + len(hot)] = hot
            percpu[0x1_0000 * cpu + 0x80 : 0x1_0000 * cpu + 0x88] = struct.pack("<Q", ESTACKS if cpu == 0 else 0)
        self.memory = BytesMemory(
            {0x10_0000: bytes(0x4000), TABLES: bytes(self.tables.memory), PERCPU_PHYSICAL: bytes(percpu), PHYSICAL: bytes(content)}
        )

    def at(self, name: str) -> int:
        return self.image + LAYOUT[name]

    def _symbols(self) -> list[tuple[int, str, str]]:
        functions = [(self.image + 0x100 + 16 * i, "t", f"function_with_a_long_name_{i:04}") for i in range(600)]
        return [
            (0x40, "A", "pcpu_hot"),
            (0x80, "A", "cea_exception_stacks"),
            (self.image, "T", "_text"),
            (self.image, "T", "_stext"),
            *functions,
            (self.image + 0x3000, "T", "_etext"),
            (self.image + 0x4000, "T", "_sinittext"),
            (self.image + 0x5000, "T", "_einittext"),
            (self.at("banner"), "D", "linux_banner"),
            (self.at("notes"), "R", "__start_notes"),
            (self.at("notes") + 20 + 36, "R", "__stop_notes"),
            (self.at("orc_ip"), "R", "__start_orc_unwind_ip"),
            (self.at("orc_ip") + 16, "R", "__stop_orc_unwind_ip"),
            (self.at("orc"), "R", "__start_orc_unwind"),
            (self.at("orc") + 24, "R", "__stop_orc_unwind"),
            (self.at("orc_header"), "R", "__start_orc_header"),
            (self.at("orc_header") + 20, "R", "__stop_orc_header"),
            (self.at("state"), "D", "system_state"),
            (self.at("offsets"), "D", "__per_cpu_offset"),
            (self.at("offsets") + 64, "D", "after_the_offsets"),
            (self.at("cpu_ids"), "D", "nr_cpu_ids"),
            (self.image + 0x30_0000, "D", "init_top_pgt"),
        ]

    def registers(self, **changes: int) -> Mapping[str, int]:
        """A vCPU in the kernel."""
        known = {"cr0": 0x8005_0033, "cr3": TABLES, "cr4": 0x6F0, "efer": 0xD01, "cs": 0x10, "rip": self.image + 0x100}
        return known | changes

    def write(self, virtual: int, data: bytes) -> None:
        """Change the image."""
        self.memory.write(virtual - self.image + PHYSICAL, data)

    def write_note(self, *, stext: int | None = None, physical: int = NOTE, phys_base: int | None = None) -> None:
        """Put a VMCOREINFO note into RAM."""
        base = PHYSICAL - (self.image - 0xFFFF_FFFF_8000_0000) if phys_base is None else phys_base
        lines = [f"OSRELEASE={RELEASE}", f"BUILD-ID={BUILD_ID}", f"SYMBOL(_stext)={self.image if stext is None else stext:x}"]
        lines += [f"SYMBOL({name})={address:x}" for name, address in self.parts.items()] + [f"NUMBER(phys_base)={base}", ""]
        self.memory.write(physical, "\n".join(lines).encode().ljust(0x1000, b"\0"))
