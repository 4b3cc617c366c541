"""A function's code becomes the state of its frame at each of its instructions: a walk over all ways that lead to them.

Compilers put the making of a frame anywhere in a function, and its end in front of other code, so that what lies before an
instruction says little. What instructions do is the architecture's (``unwind.machine_code``). Where no way is seen to lead
(tables of a ``switch``, recovery from faults), the state is that in which the function jumped by a register, else the one that most
of its instructions have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from unwind.machine_code import FrameState, MachineCode


@dataclass(frozen=True, slots=True)
class FollowedCode:
    """states: before each instruction, by its address. exits: before the instructions outside that the function jumps to."""

    states: Mapping[int, FrameState]
    exits: Mapping[int, FrameState]


def follow_code(machine: MachineCode, start: int, code: bytes, entry: FrameState) -> FollowedCode:
    """Follow a function's code from its start on, which it is entered at in the state ``entry``."""
    walk = _Walk(machine, start, code)
    walk.run(start, entry)
    for address in range(start, walk.end, machine.size):
        if address not in walk.states:
            walk.run(address, walk.usual())
    return FollowedCode(walk.states, walk.exits)


class _Walk:
    def __init__(self, machine: MachineCode, start: int, code: bytes) -> None:
        self._machine, self._start, self._code = machine, start, code
        self.end = start + len(code) - len(code) % machine.size
        self.states: dict[int, FrameState] = {}
        self.exits: dict[int, FrameState] = {}
        self._at_jump: FrameState | None = None

    def usual(self) -> FrameState:
        """The state of an instruction that no way leads to."""
        if self._at_jump is None:
            self._at_jump = Counter(self.states.values()).most_common(1)[0][0]
        return self._at_jump

    def _is_news(self, address: int, state: FrameState, *, is_certain: bool) -> bool:
        """Whether an instruction has no state yet, or one that is not true on all ways: that its return address is saved."""
        known = self.states.get(address)
        return known is None or (is_certain and known.is_saved and not state.is_saved)

    def run(self, address: int, state: FrameState) -> None:
        """Follow all ways from an instruction on; those behind traps last, which may be none."""
        size, machine = self._machine.size, self._machine
        waiting = [(address, state)]
        traps: list[tuple[int, FrameState]] = []
        is_certain = True
        while waiting or traps:
            is_certain = is_certain and bool(waiting)
            address, state = waiting.pop() if waiting else traps.pop(0)
            while self._is_news(address, state, is_certain=is_certain):
                if not self._start <= address < self.end:
                    self.exits.setdefault(address, state)
                    break
                self.states[address] = state
                code = self._code[address - self._start : address - self._start + size]
                flow = machine.flow(address, code)
                if flow.target is not None:
                    waiting.append((flow.target, state))
                elif flow.is_computed and state.pushed and self._at_jump is None:
                    self._at_jump = state
                if flow.is_trap:
                    traps.append((address + size, state))
                if not flow.goes_on:
                    break
                address, state = address + size, machine.step(state, code)
