"""Which stacks are the idle loop: the vCPU waited for an interrupt.

An idle vCPU stands in the last functions of ``do_idle`` (kernel/sched/idle.c), cpuidle (drivers/cpuidle) or the architecture's
halt. A stack that merely has the idle loop at its root is not idle: an interrupt that hit the idle loop is work.
"""

from __future__ import annotations

from collections.abc import Sequence

from recording.model import FrameKind
from recording.names import Function

IDLE_FUNCTIONS = frozenset(
    {
        # the loop itself, kernel/sched/idle.c
        "do_idle",
        "cpu_startup_entry",
        "cpu_idle_loop",
        "cpuidle_idle_call",
        "default_idle_call",
        "call_cpuidle",
        "call_cpuidle_s2idle",
        "cpu_idle_poll",
        # drivers/cpuidle/cpuidle.c and its drivers
        "cpuidle_enter",
        "cpuidle_enter_state",
        "cpuidle_enter_s2idle",
        "cpuidle_poll_time",
        "poll_idle",
        "haltpoll_enter_idle",
        "default_enter_idle",
        "psci_enter_idle_state",
        "intel_idle",
        "intel_idle_irq",
        "intel_idle_ibrs",
        "intel_idle_xstate",
        "intel_idle_hlt",
        "acpi_idle_enter",
        "acpi_idle_enter_bm",
        "acpi_idle_enter_s2idle",
        "acpi_idle_do_entry",
        "acpi_safe_halt",
        # the architecture's halt
        "arch_cpu_idle",
        "default_idle",
        "amd_e400_idle",
        "mwait_idle",
        "tdx_safe_halt",
        "xen_safe_halt",
        "pv_native_safe_halt",
        "native_safe_halt",
        "psw_idle",
        "psw_idle_exit",
        "cpu_do_idle",
    }
)
_ROOTS = frozenset({"do_idle", "cpu_idle_loop", "cpu_startup_entry"})
_KINDS = frozenset({FrameKind.KERNEL, FrameKind.MODULE})
"""Some cpuidle drivers are modules (cpuidle_haltpoll)."""
_WRAPPERS = frozenset(
    {
        # What the idle loop calls on its way into and out of the halt, and labels that share an address with the halt itself.
        "__cpuidle_text_start",
        "__cpuidle_text_end",
        "tick_nohz_idle_enter",
        "sched_idle_set_state",
        "ct_idle_enter",
        "ct_idle_exit",
        "rcu_idle_enter",
        "rcu_idle_exit",
        "ct_cpuidle_enter",
        "ct_cpuidle_exit",
    }
)


def is_idle_function(function: Function) -> bool:
    """Whether a function belongs to the idle loop."""
    return function.kind in _KINDS and function.name in IDLE_FUNCTIONS


def is_idle(stack: Sequence[Function]) -> bool:
    """Whether a stack, root first, is the idle loop waiting."""
    position = len(stack)
    while position > 0 and stack[position - 1].kind in _KINDS and stack[position - 1].name in _WRAPPERS:
        position -= 1
    if position == 0 or not is_idle_function(stack[position - 1]):
        return False
    return any(function.kind is FrameKind.KERNEL and function.name in _ROOTS for function in stack[:position])
