"""i386's kernel stacks, of a few literal words each: bodies, prologues, epilogues, trap frames, roots, and damage."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.text import TextImage
from recording.model import Callchain, StackEnd
from recording.symbols import SymbolTable
from unwind.arch.i386 import I386
from unwind.capture import Capture
from unwind.kernel import KernelUnwinder
from unwind.methods import frame_rows

TEXT = 0xC600_0000
STACK = 0xC1C7_6000
TOP = STACK + 0x2000
SOFT_IRQ_STACK = 0xC11B_0000
USER_PC = 0x081A_6D3A
SIZE = 0x100

NOP = "3e8d742600"  # what ftrace leaves of `call __fentry__`
FRAME = NOP + "55 89e5"  # push %ebp; mov %esp,%ebp
LATE = NOP + "55 83cf01 89e5"  # with `or $1,%edi` in between
SHRUNK = NOP + "85c0 7405 55 89e5"  # test %eax,%eax; je; only then the frame
CODES = {
    "vfs_read": FRAME + "53" + "5b 5d c3",
    "late": LATE + "90 5d c3",
    "shrunk": SHRUNK + "90 5d c3 c3",
    "aligned": NOP + "8d4c2404 83e4f8 ff71fc 55 89e5 51" + "59 5d 8d61fc c3",  # lea 4(%esp),%ecx; and; push -4(%ecx) …
    "aligned_by_edi": NOP + "57 8d7c2408 83e4f8 ff77fc 55 89e5 57" + "5f 5d 8d67f8 5f c3",
    "jumps": FRAME + "5d e9 00000000",
    "leaf": "8b00 c3",
    "__switch_to_asm": "55 53 57 56 9c 89a0dc080000 8ba2dc080000 9d 5e 5f 5b 5d e9 00000000",
    "vfs_read.cold": "90 90 e9 00000000",
    "ksys_read": FRAME,
    "do_SYSENTER_32": FRAME,
    "exc_page_fault": FRAME,
    "call_on_stack": FRAME,
    "kthread": FRAME,
    "ret_from_fork": "",
    "start_secondary": FRAME,
    "__entry_text_start": "",
    "entry_SYSENTER_32": "",
    "handle_exception": "",
    "__entry_text_end": "",
}
AT = {name: TEXT + SIZE * index for index, name in enumerate(CODES)}
CALL_END = 0x40
"""Where each function goes on behind a call."""


def behind(caller: str, called: str | None) -> int:
    """The return address in a function behind its call of another, or of what a register says."""
    return AT[caller] + CALL_END + (0x10 if called is None else 0)


class Kernel:
    """Functions with calls where a test wants them."""

    def __init__(self) -> None:
        self.code = bytearray(b"\x90" * SIZE * len(CODES))
        for name, text in CODES.items():
            code = bytes.fromhex(text)
            at = AT[name] - TEXT
            self.code[at : at + len(code)] = code
            self.code[at + CALL_END + 0xE : at + CALL_END + 0x10] = b"\xff\xd0"  # call *%eax

    def call(self, caller: str, called: str) -> int:
        """Write a call; its return address."""
        back = behind(caller, called)
        self.code[back - 5 - TEXT : back - TEXT] = b"\xe8" + struct.pack("<i", AT[called] - back)
        return back

    def unwinder(self) -> KernelUnwinder:
        symbols = SymbolTable.from_symbols([(address, "t", name) for name, address in AT.items()])
        text = TextImage(((TEXT, bytes(self.code)),))
        return KernelUnwinder(I386, symbols, text, frame_rows(I386, symbols, text))

    def unwind(self, words: Mapping[int, Sequence[int]], **registers: int) -> Callchain:
        values = {"cs": 0x60, "ss": 0x68, "cr0": 0x8005_0033, **registers}
        pieces = tuple(sorted((address, struct.pack(f"<{len(each)}I", *each)) for address, each in words.items()))
        return self.unwinder().unwind(Capture(0, values, pieces)).callchain


def pt_regs(*, pc: int, cs: int, sp: int, ss: int, fp: int = 0, number: int = 0xFFFF_FFFF) -> list[int]:
    """``struct pt_regs`` (arch/x86/include/asm/ptrace.h)."""
    return [0, 0, 0, 0, 0, fp, 0, 0x7B, 0x7B, 0xD8, 0, number, pc, cs, 0x246, sp, ss]


USER_REGS = pt_regs(pc=USER_PC, cs=0x73, sp=0xBFE8_0BBC, ss=0x7B, fp=0xBFE8_0BD0, number=3)
AT_USER_REGS = TOP - 8 - 68


def names(chain: Callchain) -> list[str]:
    starts = {address: name for name, address in AT.items()}
    return [starts[frame.lookup_pc // SIZE * SIZE] for frame in chain.frames]


def system_call(kernel: Kernel) -> dict[int, list[int]]:
    """The end of a stack: ksys_read, called by do_SYSENTER_32, which entry code calls without a frame pointer of the kernel's."""
    outer = AT_USER_REGS - 8
    return {
        AT_USER_REGS: USER_REGS,
        outer: [0xBFE8_0BD0, kernel.call("entry_SYSENTER_32", "do_SYSENTER_32")],
        outer - 8: [outer, kernel.call("do_SYSENTER_32", "ksys_read")],
    }


FP = AT_USER_REGS - 16
"""ksys_read's frame pointer."""
ENDING = ["ksys_read", "do_SYSENTER_32", "entry_SYSENTER_32"]


@pytest.mark.parametrize(
    ("name", "into", "pushed"),
    [
        ("vfs_read", 0, []),
        ("vfs_read", 5, []),
        ("vfs_read", 6, [FP]),  # behind push %ebp
        ("late", 6, [FP]),
        ("late", 9, [FP]),
        ("shrunk", 5, []),
        ("shrunk", 9, []),
        ("shrunk", 10, [FP]),
        ("shrunk", 15, []),  # the way without a frame, at its ret
        ("vfs_read", 11, []),  # at ret
        ("jumps", 9, []),  # at the jump behind pop %ebp
        ("leaf", 0, []),
        ("leaf", 2, []),
        ("__switch_to_asm", 0, []),
        ("__switch_to_asm", 1, [FP]),
        ("__switch_to_asm", 3, [1, 2, FP]),
        ("__switch_to_asm", 5, [4, 3, 2, 1, FP]),
        ("__switch_to_asm", 17, [4, 3, 2, 1, FP]),  # at popf
        ("__switch_to_asm", 20, [1, FP]),  # at pop %ebx
        ("__switch_to_asm", 22, []),  # at the jump
    ],
)
def test_a_function_without_its_frame(name: str, into: int, pushed: list[int]) -> None:
    kernel = Kernel()
    words = system_call(kernel)
    back = kernel.call("ksys_read", name)
    sp = FP - 0x20 - 4 * len(pushed)
    words[sp] = [*pushed, back]
    chain = kernel.unwind(words, eip=AT[name] + into, esp=sp, ebp=FP)
    assert names(chain) == [name, *ENDING]
    assert chain.end is StackEnd.USER_ENTRY


@pytest.mark.parametrize(("name", "into"), [("vfs_read", 8), ("late", 11), ("shrunk", 12), ("vfs_read.cold", 2), ("jumps", 8)])
@pytest.mark.parametrize("called", ["directly", "by a register"])
def test_a_function_with_its_frame(name: str, into: int, called: str) -> None:
    """Also where a return address of another function is at the stack pointer: left over, in a variable not written yet."""
    kernel = Kernel()
    words = system_call(kernel)
    back = kernel.call("ksys_read", name) if called == "directly" else behind("ksys_read", None)
    fp = FP - 0x20
    words[fp - 8] = [kernel.call("kthread", "leaf"), 0, FP, back]
    chain = kernel.unwind(words, eip=AT[name] + into, esp=fp - 8, ebp=fp)
    assert names(chain) == [name, *ENDING]
    assert chain.end is StackEnd.USER_ENTRY


@pytest.mark.parametrize(
    ("name", "into", "register", "words_above"),
    [
        ("aligned", 5, None, 0),
        ("aligned", 9, "ecx", 0),  # behind lea 4(%esp),%ecx
        ("aligned", 15, "ecx", 0),  # behind the copy of the return address
        ("aligned", 21, "ecx", 0),  # at lea -4(%ecx),%esp
        ("aligned", 24, None, 0),  # at ret
        ("aligned_by_edi", 5, None, 0),
        ("aligned_by_edi", 6, None, 1),  # behind push %edi
        ("aligned_by_edi", 10, "edi", 0),
        ("aligned_by_edi", 22, "edi", 0),  # at lea -8(%edi),%esp
        ("aligned_by_edi", 25, None, 1),  # at pop %edi
        ("aligned_by_edi", 26, None, 0),
    ],
)
def test_a_function_that_aligns_its_stack(name: str, into: int, register: str | None, words_above: int) -> None:
    kernel = Kernel()
    words = system_call(kernel)
    at = FP - 0x20
    words[at - 4 * words_above] = [7] * words_above + [kernel.call("ksys_read", name)]
    sp = at - 4 * words_above if register is None else at - 0x18
    others = {} if register is None else {register: at + 4}
    chain = kernel.unwind(words, eip=AT[name] + into, esp=sp, ebp=FP, **others)
    assert names(chain) == [name, *ENDING]


@pytest.mark.parametrize("cs", [0x60, 0x2000_0060])
def test_an_exception_in_the_kernel(cs: int) -> None:
    """Its handler's frame pointer is that of entry code, encoded: pt_regs without the highest bit. Flags stand above ``cs``."""
    kernel = Kernel()
    words = system_call(kernel)
    kernel.call("ksys_read", "vfs_read")
    words[FP - 0x20] = [FP, behind("ksys_read", "vfs_read")]
    at = FP - 0x100
    words[at] = pt_regs(pc=AT["vfs_read"] + 8, cs=cs, sp=FP - 0x30, ss=0x68, fp=FP - 0x20)
    words[at - 8] = [at & 0x7FFF_FFFF, behind("handle_exception", None)]
    chain = kernel.unwind(words, eip=AT["exc_page_fault"] + 0x20, esp=at - 0x10, ebp=at - 8)
    assert names(chain) == ["exc_page_fault", "handle_exception", "vfs_read", *ENDING]
    assert chain.end is StackEnd.USER_ENTRY
    assert [frame.pc == frame.lookup_pc for frame in chain.frames] == [True, False, True, False, False, False]


@pytest.mark.parametrize(
    ("registers", "end"),
    [
        ({"cs": 0x73, "ss": 0x7B}, StackEnd.USER_ENTRY),
        ({"cs": 0x33, "ss": 0x7B}, StackEnd.BAD_RETURN_ADDRESS),
        ({"cs": 0x73, "ss": 0x68}, StackEnd.BAD_RETURN_ADDRESS),
        ({"cs": 0x73, "ss": 0x7B, "pc": 0xC600_0000}, StackEnd.BAD_RETURN_ADDRESS),
        ({"cs": 0x60, "ss": 0x68}, StackEnd.BAD_RETURN_ADDRESS),
    ],
)
def test_a_trap_frame_must_be_one(registers: dict[str, int], end: StackEnd) -> None:
    kernel = Kernel()
    words = system_call(kernel)
    words[AT_USER_REGS] = pt_regs(**{"pc": USER_PC, "sp": 0xBFE8_0BBC, **registers})
    assert kernel.unwind(words, eip=AT["ksys_read"] + 0x20, esp=FP - 0x10, ebp=FP).end is end


@pytest.mark.parametrize(
    ("padding", "end"), [(8, StackEnd.USER_ENTRY), (16, StackEnd.USER_ENTRY), (12, StackEnd.BAD_RETURN_ADDRESS)]
)
def test_user_registers_end_at_the_stacks_top(padding: int, end: StackEnd) -> None:
    kernel = Kernel()
    at = TOP - padding - 68
    words = {at: USER_REGS, at - 8: [0, kernel.call("entry_SYSENTER_32", "do_SYSENTER_32")]}
    assert kernel.unwind(words, eip=AT["do_SYSENTER_32"] + 0x20, esp=at - 0x10, ebp=at - 8).end is end


@pytest.mark.parametrize("name", ["entry_SYSENTER_32", "handle_exception"])
def test_entry_code_has_no_stack(name: str) -> None:
    chain = Kernel().unwind({}, eip=AT[name] + 0x20, esp=0xFF40_5FC0, ebp=0xBFE8_0BD0)
    assert (names(chain), chain.end) == ([name], StackEnd.ENTRY_WINDOW)


def test_a_soft_interrupts_stack_leads_on_by_its_frames() -> None:
    kernel = Kernel()
    words = system_call(kernel)
    outer = FP - 0x40
    words[outer] = [FP, kernel.call("ksys_read", "call_on_stack")]
    inner = SOFT_IRQ_STACK + 0x1FF0
    words[inner] = [outer, behind("call_on_stack", None)]
    chain = kernel.unwind(words, eip=AT["vfs_read"] + 8, esp=inner - 8, ebp=inner)
    assert names(chain) == ["vfs_read", "call_on_stack", *ENDING]
    assert chain.end is StackEnd.USER_ENTRY


def test_roots() -> None:
    kernel = Kernel()
    fp = TOP - 0x60
    thread = {fp: [0, behind("ret_from_fork", None)]}
    chain = kernel.unwind(thread, eip=AT["kthread"] + 0x20, esp=fp - 8, ebp=fp)
    assert (names(chain), chain.end) == (["kthread", "ret_from_fork"], StackEnd.TASK_ROOT)
    new = {fp: [0, AT["ret_from_fork"]]}
    assert kernel.unwind(new, eip=AT["kthread"] + 0x20, esp=fp - 8, ebp=fp).end is StackEnd.TASK_ROOT
    idle = {fp: [0, behind("start_secondary", None)]}
    assert kernel.unwind(idle, eip=AT["ksys_read"] + 0x20, esp=fp - 8, ebp=fp).end is StackEnd.IDLE_ROOT


def test_boot_code_that_was_freed() -> None:
    """Its functions have frames, too, which nothing can be read of any more."""
    kernel = Kernel()
    symbols = SymbolTable.from_symbols([(address, "t", name) for name, address in AT.items()])
    text = TextImage(((TEXT, bytes(kernel.code[: AT["ksys_read"] - TEXT])),))
    init = (AT["ksys_read"], AT["start_secondary"])
    unwinder = KernelUnwinder(I386, symbols, text, frame_rows(I386, symbols, text), init)
    words = struct.pack("<4I", FP, AT["ksys_read"] + 0x21, FP + 8, AT["kthread"] + 0x21) + struct.pack(
        "<2I", 0, AT["ret_from_fork"]
    )
    registers = {"cs": 0x60, "ss": 0x68, "cr0": 0x8005_0033, "eip": AT["vfs_read"] + 8, "esp": FP - 0x10, "ebp": FP - 8}
    chain = unwinder.unwind(Capture(0, registers, ((FP - 8, words),))).callchain
    assert names(chain) == ["vfs_read", "ksys_read", "kthread", "ret_from_fork"]
    assert chain.end is StackEnd.TASK_ROOT


def test_firmware() -> None:
    chain = Kernel().unwind({}, eip=0xFFFE_BABA, esp=0x6FB8, ebp=0xCF8)
    assert chain.end is StackEnd.FIRMWARE


def test_code_of_an_unknown_module() -> None:
    kernel = Kernel()
    words = system_call(kernel)
    module = 0xE081_2345
    words[FP - 0x20] = [FP, behind("ksys_read", None)]
    words[FP - 0x40] = [FP - 0x20, module]
    chain = kernel.unwind(words, eip=AT["vfs_read"] + 8, esp=FP - 0x48, ebp=FP - 0x40)
    assert [frame.pc for frame in chain.frames][1] == module
    assert chain.end is StackEnd.USER_ENTRY


@pytest.mark.parametrize(
    ("word", "end"),
    [
        (AT["ksys_read"] + 0x21, StackEnd.BAD_RETURN_ADDRESS),
        (USER_PC, StackEnd.BAD_RETURN_ADDRESS),
        (None, StackEnd.UNREADABLE_MEMORY),
    ],
)
def test_a_chain_that_is_damaged(word: int | None, end: StackEnd) -> None:
    kernel = Kernel()
    words: dict[int, list[int]] = {} if word is None else {FP: [FP + 0x10, word]}
    assert kernel.unwind(words, eip=AT["vfs_read"] + 8, esp=FP - 8, ebp=FP).end is end


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.one_of(st.integers(0, 0xFFFF_FFFF), st.sampled_from([FP, FP - 8, *(at + CALL_END + 0x10 for at in AT.values())])),
        max_size=64,
    ),
    st.integers(0, SIZE * len(CODES)),
)
def test_any_stack_has_an_end(stack: list[int], into: int) -> None:
    chain = Kernel().unwind({FP - 8: [*stack, 0]}, eip=TEXT + into, esp=FP - 8, ebp=FP)
    assert chain.frames
