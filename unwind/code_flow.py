"""A function's code becomes the state of its frame at each of its instructions: a walk over all ways that lead to them.

Compilers put the making of a frame anywhere in a function, and its end in front of other code, so that what lies before an
instruction says little. What instructions do is the architecture's (``unwind.machine_code``). Where no way is seen to lead
(tables of a ``switch``, recovery from faults, branches that the kernel patches in), the state is that in which the function jumped
by a register, else the one that most of its instructions have; but none that what follows contradicts: it makes a call, though the
return address is not saved, takes down another frame, or goes on to instructions that are known to be in another state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from unwind.machine_code import Flow, FrameState, MachineCode


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
            walk.run(address, walk.likely(address), is_certain=False)
    return FollowedCode(walk.states, walk.exits)


class _Walk:
    def __init__(self, machine: MachineCode, start: int, code: bytes) -> None:
        self._machine, self._start, self._code = machine, start, code
        self.end = start + len(code) - len(code) % machine.size
        self.states: dict[int, FrameState] = {}
        self.exits: dict[int, FrameState] = {}
        self._at_jump: FrameState | None = None

    def likely(self, address: int) -> FrameState:
        """The state of an instruction that no way leads to."""
        usual = [state for state, _count in Counter(self.states.values()).most_common()]
        candidates = usual if self._at_jump is None else [self._at_jump, *usual]
        return next((state for state in candidates if self._is_possible(address, state)), candidates[0])

    def _is_possible(self, address: int, state: FrameState) -> bool:
        """Whether nothing of what follows contradicts a state."""
        seen: set[int] = set()
        waiting = [(address, state)]
        while waiting:
            address, state = waiting.pop()
            while self._start <= address < self.end and address not in seen:
                known = self.states.get(address)
                if known is not None:
                    if (known.pushed, known.is_saved) != (state.pushed, state.is_saved):
                        return False
                    break
                seen.add(address)
                code, flow = self._at(address)
                if not self._machine.fits(state, code):
                    return False
                if flow.target is not None:
                    waiting.append((flow.target, state))
                if not flow.goes_on:
                    break
                address, state = address + self._machine.size, self._machine.step(state, code)
        return True

    def _at(self, address: int) -> tuple[bytes, Flow]:
        code = self._code[address - self._start : address - self._start + self._machine.size]
        return code, self._machine.flow(address, code)

    def _is_news(self, address: int, state: FrameState, *, is_certain: bool) -> bool:
        """Whether an instruction has no state yet, or one that is not true on all ways: that its return address is saved."""
        known = self.states.get(address)
        return known is None or (is_certain and known.is_saved and not state.is_saved)

    def run(self, address: int, state: FrameState, *, is_certain: bool = True) -> None:
        """Follow all ways from an instruction on; those behind traps last, which may be none."""
        waiting = [(address, state)]
        traps: list[tuple[int, FrameState]] = []
        while waiting or traps:
            is_certain = is_certain and bool(waiting)
            address, state = waiting.pop() if waiting else traps.pop(0)
            while self._is_news(address, state, is_certain=is_certain):
                if not self._start <= address < self.end:
                    self.exits.setdefault(address, state)
                    break
                self.states[address] = state
                code, flow = self._at(address)
                behind = address + self._machine.size
                if flow.target is not None:
                    waiting.append((flow.target, state))
                elif flow.is_computed and state.pushed and self._at_jump is None:
                    self._at_jump = state
                if flow.is_trap:
                    traps.append((behind, state))
                if not flow.goes_on:
                    break
                address, state = behind, self._machine.step(state, code)
