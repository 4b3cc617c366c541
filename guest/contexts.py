"""What a vCPU was doing, from its kernel stack: the innermost function that tells (``unwind.arch.KernelCode.contexts``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from recording.idle import is_idle
from recording.model import Callchain, Context, FrameKind, Space, StackEnd, Task
from recording.names import Function
from unwind.arch import Architecture

_WITHOUT_STACK = {StackEnd.USER_MODE: Context.USER, StackEnd.FIRMWARE: Context.FIRMWARE, StackEnd.NO_KERNEL: Context.UNKNOWN}


class ContextFinder:
    """Tells contexts under one kernel; what it learned of a code address is remembered."""

    def __init__(self, architecture: Architecture, name_at: Callable[[int], str | None]) -> None:
        """``name_at``: the kernel function at an address."""
        self._marks = architecture.kernel_code.contexts
        self._number = architecture.kernel_code.system_call_number
        self._name_at = name_at
        self._known: dict[int, tuple[Function, Context | None]] = {}

    @staticmethod
    def without_kernel(callchain: Callchain) -> tuple[Context, bool]:
        """As ``find``, where no kernel is known."""
        return _WITHOUT_STACK.get(callchain.end, Context.UNKNOWN), False

    def find(self, callchain: Callchain, task: Task | None, saved: Mapping[str, int] | None) -> tuple[Context, bool]:
        """The context of a sample, and whether it was in a system call (which an interrupt may have hit).

        saved: the user registers that the kernel saved, None where the stack leads to none.
        """
        outside = _WITHOUT_STACK.get(callchain.end)
        if outside is not None:
            return outside, False
        is_firmware = callchain.frames[0].space is Space.FIRMWARE
        places = [self._place(frame.lookup_pc) for frame in callchain.frames if frame.space is Space.KERNEL]
        context = Context.FIRMWARE if is_firmware else self._innermost(places, callchain.end, task, saved)
        return context, context is Context.SYSTEM_CALL or any(mark is Context.SYSTEM_CALL for _function, mark in places)

    def _innermost(
        self,
        places: Sequence[tuple[Function, Context | None]],
        end: StackEnd,
        task: Task | None,
        saved: Mapping[str, int] | None,
    ) -> Context:
        if (task is None or task.pid == 0) and is_idle([function for function, _mark in reversed(places)]):
            return Context.IDLE
        for _function, mark in places:
            if mark is not None:
                return mark
        if end is StackEnd.USER_ENTRY:
            return Context.EXCEPTION if saved is None or (self._number(saved) or 0) < 0 else Context.SYSTEM_CALL
        if task is not None and not task.is_kernel_thread:
            # A child of fork or clone that has not yet returned from it.
            return Context.SYSTEM_CALL if end is StackEnd.TASK_ROOT else Context.UNKNOWN
        return Context.KERNEL_THREAD if task is not None or end.is_proper else Context.UNKNOWN

    def _place(self, address: int) -> tuple[Function, Context | None]:
        known = self._known.get(address)
        if known is None:
            name = self._name_at(address) or ""
            mark = next((context for prefix, context in self._marks if name.startswith(prefix)), None)
            known = self._known[address] = Function(name, "[kernel]", FrameKind.KERNEL), mark
        return known
