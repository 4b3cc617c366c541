"""riscv64's vCPUs in machine mode: the kernel code that called OpenSBI, out of a few literal words of its stack."""

from __future__ import annotations

import struct

import pytest

from guest.contexts import ContextFinder
from recording.model import Callchain, Context, Frame, Space, StackEnd, Task
from tests.unwind.test_pushed_frame import AT, TOP, Kernel, names, system_call
from unwind.arch.riscv64 import RISCV64
from unwind.firmware import find_caller

M_STACK, M_PC = 0x8004_2E80, 0x8000_72AE
TP = 0xFF60_0000_0234_5000
CALLED, TIMER = 0x8000_0000_0A00_0800 | 0x20, 0x1800
"""mstatus: MPP is the supervisor's mode, and firmware's own."""


def frame(kernel_registers: dict[str, int], mstatus: int = CALLED, zero: int = 0) -> bytes:
    assert RISCV64.firmware is not None
    saved = bytearray(280)
    values = {"tp": TP, "zero": zero, "mstatus": mstatus, **kernel_registers}
    for name, value in values.items():
        struct.pack_into("<Q", saved, RISCV64.firmware.frame[name], value)
    return bytes(saved)


def stack(below: int, *frames: bytes) -> bytes:
    """What lies above firmware's stack pointer."""
    return (b"\x11" * below + b"".join(frames)).ljust(2048, b"\0")


def live(**registers: int) -> dict[str, int]:
    return {"pc": M_PC, "sp": M_STACK, "fp": M_STACK + 64, "ra": M_PC, "tp": TP, "priv": 3, "mepc": 0, "mstatus": 0, **registers}


def call(kernel: Kernel) -> tuple[bytes, dict[str, int]]:
    """A system call that has called firmware out of ``vfs_read``: the task's stack, and the registers at the call."""
    rest, fp = system_call(kernel)
    link = kernel.call("do_trap_ecall_u", "vfs_read")
    own = struct.pack("<4Q", 0, 0, fp, link)
    at = TOP - len(rest)
    return own + rest, {"mepc": AT["vfs_read"] + 0x40, "sp": at - 32, "fp": at, "ra": kernel.call("vfs_read", "memcpy", 0x20)}


EXPECTED = ["vfs_read", "do_trap_ecall_u", "handle_exception"]


@pytest.mark.parametrize("below", [8, 96, 1024])
def test_the_kernels_stack_follows_the_firmware(below: int) -> None:
    kernel = Kernel()
    own, registers = call(kernel)
    unwound = kernel.unwind(own, (M_STACK, stack(below, frame(registers))), **live())
    chain = unwound.callchain
    assert chain.frames[0] == Frame(M_PC, M_PC, Space.FIRMWARE)
    assert names(Callchain(chain.frames[1:], chain.end)) == EXPECTED
    assert chain.end is StackEnd.USER_ENTRY
    assert unwound.user_registers is not None


def test_firmware_that_has_just_been_entered_has_the_kernels_registers() -> None:
    kernel = Kernel()
    own, registers = call(kernel)
    chain = kernel.unwind(own, **live(**registers, mstatus=CALLED, pc=0x8000_0408)).callchain
    assert names(Callchain(chain.frames[1:], chain.end)) == EXPECTED
    assert chain.end is StackEnd.USER_ENTRY


@pytest.mark.parametrize(
    ("below", "frames"),
    [
        (0, [{}]),  # just being saved
        (64, [{"mstatus": TIMER}]),  # firmware interrupted itself
        (64, [{"mstatus": 0}]),  # user code was interrupted
        (64, [{"zero": 1}]),
        (64, [{"tp": 0xFF60_0000_0999_9000}]),  # another hart's
        (64, [{"mepc": 0x1_2344}]),
        (64, [{"sp": M_STACK}]),
        (65, [{}]),
        (1792, [{}]),  # deeper than what is looked at
        (64, []),
    ],
)
def test_anything_else_is_firmware_alone(below: int, frames: list[dict[str, int]]) -> None:
    kernel = Kernel()
    own, registers = call(kernel)
    made = [
        frame(
            {**registers, **{k: v for k, v in each.items() if k not in ("mstatus", "zero")}},
            each.get("mstatus", CALLED),
            each.get("zero", 0),
        )
        for each in frames
    ]
    chain = kernel.unwind(own, (M_STACK, stack(below, *made)[:2048]), **live()).callchain
    assert chain == Callchain((Frame(M_PC, M_PC, Space.FIRMWARE),), StackEnd.FIRMWARE)


def test_of_several_frames_the_outermost_is_the_call() -> None:
    kernel = Kernel()
    _own, registers = call(kernel)
    old = frame({**registers, "mepc": AT["memcpy"]})
    data = stack(64, old, frame(registers))
    caller = find_caller(RISCV64, live(), lambda _address, _size: data)
    assert caller is not None
    assert caller["pc"] == registers["mepc"]
    assert find_caller(RISCV64, live(), lambda _address, _size: None) is None
    assert find_caller(RISCV64, live(priv=1), lambda _address, _size: data) is None


def test_the_context_is_firmware_in_a_system_call() -> None:
    frames = (Frame(M_PC, M_PC, Space.FIRMWARE), *(Frame(AT[name], AT[name]) for name in ("vfs_read", "do_trap_ecall_u")))
    finder = ContextFinder(RISCV64, {address: name for name, address in AT.items()}.get)
    task = Task(40, 40, "dd", "dd", is_kernel_thread=False)
    assert finder.find(Callchain(frames, StackEnd.USER_ENTRY), task, {"scause": 8, "a7": 63}) == (Context.FIRMWARE, True)
    alone = Callchain(frames[:1], StackEnd.FIRMWARE)
    assert finder.find(alone, task, None) == (Context.FIRMWARE, False)
