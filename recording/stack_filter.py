"""Which stacks a selection lets through by the functions in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from recording.names import Function
from recording.reader import Selection


class StackFilter:
    """Asks each function once. What is in a stack does not depend on which of its frames."""

    def __init__(self, selection: Selection, functions: Sequence[Function]) -> None:
        """functions: what the indexes of stacks count; it may grow."""
        self._modules, self._focus, self._ignore = selection.modules, selection.focus, selection.ignore
        self._functions = functions
        self._known: dict[int, tuple[bool, bool, bool]] = {}

    def lets_through(self, indexes: Iterable[int]) -> bool:
        """Whether a stack has what is wanted of it, and nothing that is not."""
        if self._modules is None and self._focus is None and self._ignore is None:
            return True
        in_module = is_focus = False
        for index in indexes:
            own_module, own_focus, is_ignored = self._known.get(index) or self._ask(index)
            if is_ignored:
                return False
            in_module, is_focus = in_module or own_module, is_focus or own_focus
        return in_module and is_focus

    def _ask(self, index: int) -> tuple[bool, bool, bool]:
        function = self._functions[index]
        texts = function.name, function.module
        answer = self._known[index] = (
            self._modules is None or not self._modules.isdisjoint(names_of_module(function.module)),
            self._focus is None or _is_found(self._focus, texts),
            self._ignore is not None and _is_found(self._ignore, texts),
        )
        return answer


def _is_found(patterns: Iterable[re.Pattern[str]], texts: Sequence[str]) -> bool:
    return any(pattern.search(text) for pattern in patterns for text in texts)


def names_of_module(module: str) -> tuple[str, ...]:
    """What people call a module: ``[ext4]`` and ``ext4``, ``/usr/lib/libc.so.6`` and ``libc.so.6``."""
    return module, module.removeprefix("[").removesuffix("]"), module.rpartition("/")[2]
