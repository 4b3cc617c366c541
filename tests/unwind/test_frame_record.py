"""arm64's kernel stacks, of a few literal words each: records, leaves, both kinds of trap frames, and damage."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.text import TextImage
from recording.model import Callchain, StackEnd
from recording.symbols import Symbol, SymbolTable
from unwind.arch.arm64 import ARM64
from unwind.capture import Capture
from unwind.frame_record import FrameRecordRows
from unwind.kernel import KernelUnwinder
from unwind.methods import frame_rows

TEXT = 0xFFFF_8000_8001_0000
STACK = 0xFFFF_8000_0A00_0000
TOP = STACK + 0x4000
IRQ_STACK = 0xFFFF_8000_0000_8000
NOP, RET, BLR = 0xD503201F, 0xD65F03C0, 0xD63F0020
PUSH, SET_FP, SIGN = 0xA9BD7BFD, 0x910003FD, 0xD503233F  # stp x29, x30, [sp, #-48]!; mov x29, sp; paciasp
USER_PC = 0xAAAA_0000_1234
SIZE = 0x800

NAMES = (
    "vfs_read",
    "ksys_read",
    "el0_svc",
    "el0t_64_sync_handler",
    "memcpy",
    "do_interrupt_handler",
    "call_on_irq_stack",
    "el1_interrupt",
    "ret_from_fork",
    "kthread",
    "vfs_read.cold",
    "__entry_text_start",
    "el0t_64_sync",
    "el1h_64_irq",
    "vectors",
    "__entry_text_end",
)
AT = {name: TEXT + SIZE * index for index, name in enumerate(NAMES)}


def bl(address: int, target: int) -> int:
    return 0x94000000 | (target - address >> 2 & 0x03FF_FFFF)


class Kernel:
    """Every function: paciasp, push, set fp, nops; calls are written where a test wants them."""

    def __init__(self) -> None:
        self.code = bytearray()
        for _name in NAMES:
            self.code += struct.pack(f"<{SIZE // 4}I", SIGN, PUSH, SET_FP, *[NOP] * 12, RET, *[NOP] * (SIZE // 4 - 16))

    def write(self, address: int, *instructions: int) -> None:
        struct.pack_into(f"<{len(instructions)}I", self.code, address - TEXT, *instructions)

    def call(self, caller: str, callee: str | None, at: int = 0x18) -> int:
        """The return address of a call in a function, by name or through a register."""
        address = AT[caller] + at
        self.write(address, BLR if callee is None else bl(address, AT[callee]))
        return address + 4

    def unwinder(self) -> KernelUnwinder:
        symbols = SymbolTable.from_symbols([(address, "t", name) for name, address in AT.items()])
        text = TextImage([(TEXT, bytes(self.code))])
        return KernelUnwinder(ARM64, symbols, text, frame_rows(ARM64, symbols, text))


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def trap(*, newer: bool = False, **registers: int) -> bytes:
    """A pt_regs of 336 bytes with a frame record in it: to 6.12 {x29, pc} or {0, 0} at 304, later {0, 0} and a type at 296."""
    saved = bytearray(336)
    for name, offset in ARM64.kernel_code.trap.full.items():
        struct.pack_into("<Q", saved, offset, registers.get(name, 0))
    if newer:
        struct.pack_into("<3Q", saved, 296, 0, 0, 1 if registers["cpsr"] == 0 else 2)
    elif registers["cpsr"]:
        struct.pack_into("<2Q", saved, 304, registers["x29"], registers["pc"])
    return bytes(saved)


def user_trap(*, newer: bool = False) -> bytes:
    return trap(newer=newer, pc=USER_PC, sp=0xFFFF_FFFF_0000, cpsr=0, x0=3, x29=0xFFFF_FFFF_0010, syscallno=63)


def capture(stack: bytes, *others: tuple[int, bytes], **registers: int) -> Capture:
    """``stack`` ends at the top of the task's."""
    pieces = sorted([(TOP - len(stack), stack), *others])
    return Capture(0, {"sp": TOP - len(stack), "cpsr": 0x5, "x29": 0, "x30": 0, **registers}, tuple(pieces))


def names(chain: Callchain) -> list[str]:
    return [next(name for name, start in AT.items() if start <= frame.lookup_pc < start + SIZE) for frame in chain.frames]


def system_call(kernel: Kernel, *, newer: bool = False) -> tuple[bytes, int]:
    """The stack of a system call from ``ksys_read``'s record on, and the address of that record."""
    base = TOP - 336
    record = base + (296 if newer else 304)
    handler, svc, read = base - 48, base - 96, base - 144
    stack = words(svc, kernel.call("el0_svc", "ksys_read"), 0, 0, 0, 0)
    stack += words(handler, kernel.call("el0t_64_sync_handler", "el0_svc"), 0, 0, 0, 0)
    stack += words(record, kernel.call("el0t_64_sync", "el0t_64_sync_handler"), 0, 0, 0, 0)
    return stack + user_trap(newer=newer), read


CALLERS = ["ksys_read", "el0_svc", "el0t_64_sync_handler", "el0t_64_sync"]


@pytest.mark.parametrize("newer", [False, True])
def test_system_call_ends_at_the_user_registers(newer: bool) -> None:
    kernel = Kernel()
    stack, record = system_call(kernel, newer=newer)
    unwound = kernel.unwinder().unwind(
        capture(stack, pc=AT["ksys_read"] + 0x30, x29=record, x30=kernel.call("ksys_read", "memcpy", 0x28))
    )
    assert names(unwound.callchain) == CALLERS
    assert unwound.callchain.end is StackEnd.USER_ENTRY
    assert unwound.user_registers is not None
    assert unwound.user_registers["pc"] == USER_PC
    assert unwound.user_registers["sp"] == 0xFFFF_FFFF_0000
    assert unwound.user_registers["x29"] == 0xFFFF_FFFF_0010
    assert ARM64.kernel_code.system_call_number(unwound.user_registers) == 63


@pytest.mark.parametrize("offset", [0, 4, 8])
@pytest.mark.parametrize("callee", ["vfs_read", None])
def test_before_its_record_a_function_returns_to_the_link_register(offset: int, callee: str | None) -> None:
    kernel = Kernel()
    stack, record = system_call(kernel)
    link = kernel.call("ksys_read", callee)
    # Behind the push but before x29 is set, the record lies unused at the stack pointer.
    pushed = words(record, link, 0, 0, 0, 0) if offset == 8 else b""
    unwound = kernel.unwinder().unwind(capture(pushed + stack, pc=AT["vfs_read"] + offset, x29=record, x30=link))
    assert names(unwound.callchain) == ["vfs_read", *CALLERS]
    assert unwound.callchain.end is StackEnd.USER_ENTRY


def test_with_its_record_just_made_a_function_has_its_caller_once() -> None:
    kernel = Kernel()
    stack, record = system_call(kernel)
    link = kernel.call("ksys_read", "vfs_read")
    own = words(record, link, 0, 0, 0, 0)
    unwound = kernel.unwinder().unwind(capture(own + stack, pc=AT["vfs_read"] + 12, x29=record - 48, x30=link))
    assert names(unwound.callchain) == ["vfs_read", *CALLERS]


def test_a_function_that_has_called_another_goes_by_its_record() -> None:
    kernel = Kernel()
    stack, record = system_call(kernel)
    own = words(record, kernel.call("ksys_read", "vfs_read"), 0, 0, 0, 0)
    link = kernel.call("vfs_read", "memcpy", 0x20)
    registers = {"pc": AT["vfs_read"] + 0x2C, "x29": record - 48}
    for value in (link, 0, 0x1234, AT["vfs_read"] + 0x30, STACK):  # the last ones are no return addresses: x30 is used otherwise
        unwound = kernel.unwinder().unwind(capture(own + stack, x30=value, **registers))
        assert names(unwound.callchain) == ["vfs_read", *CALLERS]


def test_a_leaf_in_a_leafs_caller() -> None:
    kernel = Kernel()
    stack, record = system_call(kernel)
    own = words(record, kernel.call("ksys_read", "vfs_read"), 0, 0, 0, 0)
    link = kernel.call("vfs_read", "memcpy", 0x20)
    kernel.write(AT["memcpy"], *[NOP] * 15)
    unwound = kernel.unwinder().unwind(capture(own + stack, pc=AT["memcpy"] + 0x20, x29=record - 48, x30=link))
    assert names(unwound.callchain) == ["memcpy", "vfs_read", *CALLERS]


def test_recursion_in_its_first_instructions() -> None:
    kernel = Kernel()
    stack, record = system_call(kernel)
    again = kernel.call("vfs_read", "vfs_read", 0x20)
    outer = words(record, kernel.call("ksys_read", "vfs_read"), 0, 0, 0, 0)
    inner = words(record - 48, again, 0, 0, 0, 0)
    unwound = kernel.unwinder().unwind(capture(inner + outer + stack, pc=AT["vfs_read"], x29=record - 96, x30=again))
    assert names(unwound.callchain) == ["vfs_read", "vfs_read", "vfs_read", *CALLERS]


def test_a_cold_part_is_its_function() -> None:
    kernel = Kernel()
    stack, record = system_call(kernel)
    own = words(record, kernel.call("ksys_read", "vfs_read"), 0, 0, 0, 0)
    link = kernel.call("vfs_read", "memcpy", 0x20)
    unwound = kernel.unwinder().unwind(capture(own + stack, pc=AT["vfs_read.cold"] + 4, x29=record - 48, x30=link))
    assert names(unwound.callchain) == ["vfs_read.cold", *CALLERS]


def test_signed_return_addresses() -> None:
    kernel = Kernel()
    stack, record = system_call(kernel)
    own = words(record, kernel.call("ksys_read", "vfs_read") & ~(0x7F << 48), 0, 0, 0, 0)
    link = kernel.call("vfs_read", "memcpy", 0x20) & ~(0x2A << 48)
    unwound = kernel.unwinder().unwind(capture(own + stack, pc=AT["memcpy"] + 4, x29=record - 48, x30=link))
    assert names(unwound.callchain) == ["memcpy", "vfs_read", *CALLERS]


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("is_leaf", [False, True])
def test_interrupt_on_a_stack_of_its_own_hits_a_leaf_or_not(newer: bool, is_leaf: bool) -> None:
    """The interrupted function's link register is in the trap frame; the record in that would lead past its caller."""
    kernel = Kernel()
    stack, record = system_call(kernel)
    link = kernel.call("ksys_read", "vfs_read")
    sp = TOP - len(stack)
    before = trap(
        newer=newer, pc=AT["vfs_read"] + (4 if is_leaf else 0x30), sp=sp, cpsr=0x4000_0005, x29=record, x30=link if is_leaf else 0
    )
    base = sp - len(before)
    at = base + (296 if newer else 304)
    handler, switch = base - 32, base - 48
    on_task = words(handler, kernel.call("do_interrupt_handler", "call_on_irq_stack"))
    on_task += words(at, kernel.call("el1h_64_irq", "el1_interrupt"), 0, 0)
    on_irq = words(switch, kernel.call("call_on_irq_stack", None))
    unwound = kernel.unwinder().unwind(
        Capture(
            0,
            {"sp": IRQ_STACK, "x29": IRQ_STACK, "x30": 0, "pc": AT["el1_interrupt"] + 0x30, "cpsr": 0xC5},
            ((IRQ_STACK, on_irq), (switch, on_task + before + stack)),
        )
    )
    interrupted = ["vfs_read", *CALLERS] if is_leaf else ["vfs_read", *CALLERS[1:]]
    expected = ["el1_interrupt", "call_on_irq_stack", "do_interrupt_handler", "el1h_64_irq", *interrupted]
    assert names(unwound.callchain) == expected
    assert unwound.callchain.end is StackEnd.USER_ENTRY


def test_kernel_thread_ends_at_its_root() -> None:
    kernel = Kernel()
    record = TOP - 64
    stack = words(TOP - 32, kernel.call("ret_from_fork", None), 0, 0) + words(0, 0, 0, 0)
    unwound = kernel.unwinder().unwind(capture(stack, pc=AT["kthread"] + 0x30, x29=record))
    assert (names(unwound.callchain), unwound.callchain.end) == (["kthread", "ret_from_fork"], StackEnd.TASK_ROOT)
    fresh = kernel.unwinder().unwind(capture(b"", pc=AT["memcpy"], x30=AT["ret_from_fork"], x29=0))
    assert fresh.callchain.end is StackEnd.TASK_ROOT
    assert [frame.lookup_pc for frame in fresh.callchain.frames] == [AT["memcpy"], AT["ret_from_fork"]]


@pytest.mark.parametrize("pc", [AT["el1h_64_irq"] + 8, AT["el0t_64_sync"], 0xFFFF_FBFF_FDFF_4280, 0xFFFF_FFFF_FF8F_4404])
def test_entry_code_is_an_entry_window_whatever_the_registers_say(pc: int) -> None:
    kernel = Kernel()
    stack, record = system_call(kernel)
    unwound = kernel.unwinder().unwind(capture(stack, pc=pc, x29=record, x30=kernel.call("ksys_read", "vfs_read")))
    assert [frame.pc for frame in unwound.callchain.frames] == [pc]
    assert unwound.callchain.end is StackEnd.ENTRY_WINDOW


def test_trap_frames_that_no_processor_wrote() -> None:
    kernel = Kernel()
    stack, record = system_call(kernel)
    at = len(stack) - 336 + 264
    for pstate in (0x3, 0x1_0000_0000_0000, 0xF):
        damaged = stack[:at] + words(pstate) + stack[at + 8 :]
        assert (
            kernel.unwinder().unwind(capture(damaged, pc=AT["ksys_read"] + 0x30, x29=record)).callchain.end
            is StackEnd.BAD_RETURN_ADDRESS
        )
    moved = capture(stack + words(0, 0), pc=AT["ksys_read"] + 0x30, x29=record - 16)
    assert not kernel.unwinder().unwind(moved).callchain.end.is_proper


@pytest.mark.parametrize(
    ("fp", "end"),
    [
        (0, StackEnd.UNREADABLE_MEMORY),
        (STACK - 8, StackEnd.UNREADABLE_MEMORY),
        (TOP - 16, StackEnd.BAD_RETURN_ADDRESS),
        (TOP - 48, StackEnd.BAD_RETURN_ADDRESS),
    ],
)
def test_frame_pointers_that_lead_nowhere(fp: int, end: StackEnd) -> None:
    kernel = Kernel()
    unwound = kernel.unwinder().unwind(capture(words(STACK, TOP, 1, 2, 0, 0), pc=AT["vfs_read"] + 0x30, x29=fp))
    assert (names(unwound.callchain), unwound.callchain.end) == (["vfs_read"], end)


def test_records_that_go_round_in_circles() -> None:
    kernel = Kernel()
    record, link = TOP - 32, kernel.call("ksys_read", "vfs_read")
    stack = words(record, link, record, link)
    unwound = kernel.unwinder().unwind(capture(stack, pc=AT["vfs_read"] + 0x30, x29=record))
    assert unwound.callchain.end is StackEnd.DID_NOT_ADVANCE
    assert len(unwound.callchain.frames) < 4


def test_no_row_outside_of_code() -> None:
    empty = SymbolTable.from_symbols([])
    text = TextImage([])
    outside = KernelUnwinder(ARM64, empty, text, FrameRecordRows(ARM64, empty, text)).unwind(capture(b"", pc=TEXT, x29=STACK))
    assert outside.callchain.end is StackEnd.NO_UNWIND_INFO


def test_a_module_that_the_kernel_hides_is_walked_through_by_its_record() -> None:
    kernel = Kernel()
    stack, record = system_call(kernel)
    module = TEXT - 0x10_0000
    own = words(record, kernel.call("ksys_read", None), 0, 0, 0, 0)
    symbols = SymbolTable.from_symbols([(TEXT, "T", "_stext"), *((address, "t", name) for name, address in AT.items())])
    text = TextImage([(TEXT, bytes(kernel.code))])
    unwinder = KernelUnwinder(ARM64, symbols, text, frame_rows(ARM64, symbols, text))
    below = words(record - 48, module + 0x40, 0, 0, 0, 0)
    registers = {"pc": AT["memcpy"] + 0x30, "x29": record - 96, "x30": 0}
    chain = unwinder.unwind(capture(below + own + stack, **registers)).callchain
    assert chain.frames[1].pc == module + 0x40
    assert (len(chain.frames), chain.end) == (2 + len(CALLERS), StackEnd.USER_ENTRY)
    # In it, its link register may be of a call that it made itself.
    inside = unwinder.unwind(capture(own + stack, pc=module + 0x80, x29=record - 48, x30=module + 0x44)).callchain
    assert inside.frames[0].pc == module + 0x80
    assert (len(inside.frames), inside.end) == (1 + len(CALLERS), StackEnd.USER_ENTRY)


def test_a_modules_veneers_return_to_their_callers_though_no_symbol_names_them() -> None:
    kernel = Kernel()
    stack, record = system_call(kernel)
    symbols = SymbolTable.from_symbols([(address, "t", name) for name, address in AT.items()])
    module = 0xFFFF_8000_7A00_0000
    link = kernel.call("ksys_read", None)
    text = TextImage([(TEXT, bytes(kernel.code)), (module, bytes(0x100))])

    class Symbols:
        def find(self, name: str) -> Symbol | None:
            return symbols.find(name)

        def find_at(self, address: int) -> Symbol | None:
            return symbols.find_at(address) if address >= TEXT else None

    unwinder = KernelUnwinder(ARM64, Symbols(), text, frame_rows(ARM64, Symbols(), text))
    chain = unwinder.unwind(capture(stack, pc=module + 0x24, x29=record, x30=link)).callchain
    assert [frame.pc for frame in chain.frames][:2] == [module + 0x24, link]
    assert (len(chain.frames), chain.end) == (1 + len(CALLERS), StackEnd.USER_ENTRY)


_WORD = st.one_of(
    st.sampled_from([*AT.values(), *(address + 0x1C for address in AT.values()), TOP - 336 + 304, TOP - 336 + 296, 0, 5]),
    st.integers(STACK, TOP).map(lambda address: address & -8),
    st.integers(0, (1 << 64) - 1),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_WORD, max_size=96), _WORD, _WORD, st.sampled_from(sorted(AT.values())), st.integers(0, 15))
def test_damaged_stacks_end_with_a_reason(stack: list[int], fp: int, link: int, function: int, instruction: int) -> None:
    kernel = Kernel()
    for name in ("ksys_read", "el0_svc", "el0t_64_sync"):
        kernel.call(name, None)
    unwound = kernel.unwinder().unwind(capture(words(*stack), pc=function + 4 * instruction, x29=fp, x30=link))
    assert 0 < len(unwound.callchain.frames) <= 256
    assert unwound.callchain.end in StackEnd


def taken(kernel: Kernel, offset: int, stack: bytes, **registers: int) -> Callchain:
    return kernel.unwinder().unwind(capture(stack, pc=AT["vectors"] + offset, **zeros(), **registers)).callchain


def zeros() -> dict[str, int]:
    return {f"x{number}": 0 for number in range(29)}


def test_an_interrupt_that_was_just_taken_goes_on_with_what_it_hit() -> None:
    kernel = Kernel()
    stack, record = system_call(kernel)
    link = kernel.call("ksys_read", "memcpy", 0x28)
    chain = taken(kernel, 0x280, stack, x29=record, x30=link, ELR_EL1=AT["memcpy"], SPSR_EL1=0x6000_0005)
    assert names(chain) == ["vectors", "memcpy", *CALLERS]
    assert chain.end is StackEnd.USER_ENTRY


def test_an_exception_that_user_code_has_just_taken_has_all_its_registers() -> None:
    kernel = Kernel()
    registers = {"ELR_EL1": USER_PC, "SPSR_EL1": 0x8000_0000, "SP_EL0": 0xFFFF_FFFF_0000, "x29": 7, "x30": 8}
    unwound = kernel.unwinder().unwind(capture(b"", pc=AT["vectors"] + 0x400, **zeros(), **registers))
    assert names(unwound.callchain) == ["vectors"]
    assert unwound.callchain.end is StackEnd.USER_ENTRY
    assert unwound.user_registers is not None
    assert {name: unwound.user_registers[name] for name in ("pc", "sp", "x29", "x30")} == {
        "pc": USER_PC,
        "sp": 0xFFFF_FFFF_0000,
        "x29": 7,
        "x30": 8,
    }


@pytest.mark.parametrize(
    ("offset", "pc", "pstate"),
    [
        (0x284, AT["memcpy"], 0x5),  # behind the first instruction
        (0x280, USER_PC, 0x0),  # the vector is for EL1, the state is of EL0
        (0x400, AT["memcpy"], 0x5),
        (0x280, USER_PC, 0x5),
        (0x200, AT["memcpy"], 0x2_0000_0005),
        (0x000, AT["memcpy"], 0x4),
        (0x280, AT["vectors"] + 0x280, 0x5),  # taken in entry code: that one's registers are gone
    ],
)
def test_vectors_with_other_registers_are_entry_windows(offset: int, pc: int, pstate: int) -> None:
    kernel = Kernel()
    stack, record = system_call(kernel)
    chain = taken(kernel, offset, stack, x29=record, x30=0, ELR_EL1=pc, SPSR_EL1=pstate)
    assert chain.end is StackEnd.ENTRY_WINDOW
    assert len(chain.frames) <= 2
