"""Facts of architectures whose Linux guestprof does not know: there is no kernel to be found, only code of the user's files.

No vCPU ever shows a kernel there (``PagingFormat.enabled``), so that nothing here is asked for more than its shape.
"""

from __future__ import annotations

from collections.abc import Callable

from unwind.arch import (
    ByteOrder,
    InterruptStacks,
    KernelCode,
    PageTables,
    PagingFormat,
    RunningTask,
    StackLink,
    UnwindMethod,
)
from unwind.rules import TrapFrame

_NOWHERE = (0, 0)


def paging(byteorder: ByteOrder, linear: tuple[tuple[int, int, int], ...] = ()) -> PagingFormat:
    """No page tables that are known. linear: see ``PageTables``."""
    tables = PageTables(
        page_shift=12,
        index_bits=(10, 10),
        large_levels=(),
        present=1,
        large=(0, 1),
        address_mask=0xFFFF_F000,
        entry_size=4,
        byteorder=byteorder,
        linear=linear,
    )
    return PagingFormat(
        roots=lambda _registers: (),
        user_root=lambda _registers: None,
        tables=lambda _registers: tables,
        kernel_tables=lambda tables, _variable: tables,
        is_shared=False,
        shows_own=False,
        enabled=lambda _registers: False,
        user_tables=None,
    )


INTERRUPT_STACKS = InterruptStacks(
    variable="",
    container="",
    arrays=(),
    is_lowest=True,
    link=StackLink.TASK,
    exceptions="",
    word_at=0,
)
RUNNING_TASK = RunningTask(pointer=lambda _registers: None, variables=(), head=lambda _registers: None, stacks="")


def kernel_code(call_size: int, follows_call: Callable[[bytes], bool]) -> KernelCode:
    """Code of a kernel that is never found. follows_call: see ``KernelCode``."""
    return KernelCode(
        method=UnwindMethod.PUSHED_FRAMES,
        link=None,
        frame_record=0,
        chain=None,
        signature=0,
        trap=TrapFrame(size=0, full={}, partial={}, partial_at=0),
        is_trap=lambda _registers: False,
        is_trap_place=lambda _address: False,
        user_trap_paddings=(),
        call_size=call_size,
        follows_call=follows_call,
        sets_frame=lambda _code: False,
        saves_link=lambda _code: True,
        frame_height=lambda _code: None,
        task_switch=("", ""),
        has_left_frame=lambda _before, _after: False,
        machine_code=None,
        follows_own_call=lambda _before: False,
        pushed_words=lambda _before, _after: 0,
        return_labels=frozenset(),
        task_roots=frozenset(),
        idle_roots=frozenset(),
        thunks=(),
        entry_text=("", ""),
        entry_functions=frozenset(),
        entry_areas=(),
        entry_copies=(),
        name_copies=None,
        entry_places=None,
        saved_words={},
        taken_exception=lambda _name, _offset, _registers: None,
        module_area=_NOWHERE,
        has_only_code=False,
        module_reach=0,
        contexts=(),
        system_call_number=lambda _registers: None,
        is_32bit_process=lambda _registers: False,
        system_call_tables={False: ("", "")},
        first_system_calls={},
        data_in_code={},
        frame_code=None,
        entry_ranges=(),
        in_entry=lambda _registers: False,
        has_saved=lambda _registers: False,
    )
