"""The program that a vCPU runs before the kernel, by the memory of that time."""

from __future__ import annotations

from pathlib import Path

from recording.model import Frame, Image, Space
from recording.symbols import SymbolTable
from sampler.boot_code import BootCodeTracker
from sampler.memory import MemoryRange, ProcessMemory
from tests.guest.firmware.memory import code, portable, volume
from unwind.arch.x86_64 import X86_64

MS = 1_000_000
LOADED, STORED, ROM = 0x10_0000, 0x18_0000, 0xF_0000
SEABIOS = code(1, 0x8000) + b"SeaBIOS (version 1)" + bytes(0x10000 - 0x8013)
DRIVER = portable(code(2, 0x2000))
FLAT = {"cs": 8, "cr0": 1, "efer": 0, "cr3": 0, "cr4": 0}


class Made:
    """A tracker of a guest with 2 MiB of memory."""

    def __init__(self, path: Path) -> None:
        memory = bytearray(0x20_0000)
        memory[ROM : ROM + len(SEABIOS)] = SEABIOS
        memory[LOADED : LOADED + len(DRIVER)] = DRIVER
        stored = volume([("DxeCore", DRIVER)])
        memory[STORED : STORED + len(stored)] = stored
        self.file = path / "mem"
        self.file.write_bytes(memory)
        self.events: list[tuple[str, str]] = []
        self.images: list[Image] = []
        ranges = [MemoryRange(0, 0x20_0000, True)]
        self.tracker = BootCodeTracker(
            X86_64,
            ProcessMemory(0, ranges, [0], self.file),
            self.monitor,
            self,
            lambda *event: self.events.append(event),
            lambda: 0,
        )

    def monitor(self, command: str) -> str:
        if command == "info roms":
            return f'addr={ROM:016x} size=0x010000 mem=rom name="bios.bin"\r\n'
        if command == "info mtree -f":
            return 'FlatView #0\n AS "memory", root: system\n  0000000000000000-00000000001fffff (prio 0, ram): pc.ram\n'
        return "Host virtual address for 0x0 (pc.ram) is 0x0\n"

    def add_image(self, image: Image) -> int:
        self.images.append(image)
        return len(self.images) - 1

    def update_image(
        self, index: int, *, name: str | None = None, build_id: str | None = None, symbols: SymbolTable | None = None
    ) -> None:
        raise AssertionError

    def write(self, address: int, data: bytes) -> None:
        with self.file.open("r+b") as file:
            file.seek(address)
            file.write(data)

    def frame(self, registers: dict[str, int], now_ms: int = 0) -> Frame | None:
        place = self.tracker.see({"rip": 0, **FLAT, **registers}, None, now_ms * MS)
        return None if place is None else self.tracker.frame(place, None)


def test_a_bios_in_real_mode_and_after(tmp_path: Path) -> None:
    made = Made(tmp_path)
    real = {"rip": 0x1234, "cs": 0xF000, "cr0": 0x10}
    assert made.frame(real) == Frame(0x1234, 0x1234, Space.FIRMWARE, image=0)
    # Protected mode is on, and the segment is still that of real mode.
    assert made.frame({**real, "cr0": 0x11}) == Frame(0x1234, 0x1234, Space.FIRMWARE, image=0)
    assert made.frame({"rip": 0xF_2468}) == Frame(0x2468, 0x2468, Space.FIRMWARE, image=0)
    assert [image.name for image in made.images] == ["SeaBIOS"]
    (event,) = made.events
    assert event == (
        "boot-code",
        "firmware: SeaBIOS at 0xf1000, by the same code in what QEMU has loaded, in place",
    )


def test_a_program_is_named_when_its_volume_has_been_read(tmp_path: Path) -> None:
    made = Made(tmp_path)
    registers = {"rip": LOADED + 0x1234, **FLAT}
    place = made.tracker.see(registers, None, 0)
    assert place is not None
    assert made.tracker.frame(place, None) is None
    assert made.tracker.has_work
    while made.tracker.has_work:
        made.tracker.step()
    assert made.tracker.frame(place, None) == Frame(0x1234, 0x1234, Space.FIRMWARE, image=0)
    assert made.frame(registers, 1) == Frame(0x1234, 0x1234, Space.FIRMWARE, image=0)
    assert made.images[0].name == "DxeCore"


def test_what_was_overwritten_is_not_what_it_was(tmp_path: Path) -> None:
    made = Made(tmp_path)
    assert made.frame({"rip": 0xF_2468}) is not None
    made.write(ROM, code(9, 0x10000))
    assert made.frame({"rip": 0xF_2468}, 1) is None


def test_user_and_kernel_code_is_no_boot_code(tmp_path: Path) -> None:
    made = Made(tmp_path)
    assert made.frame({"rip": 0x1234, "cs": 0x33}) is None
    assert made.frame({"rip": 0xFFFF_FFFF_8100_0000, "cs": 0x10}) is None
    assert made.images == []
