"""Mangled names of C++ and Rust become the names that programmers wrote, without parameters and return types.

So does perf, which demangles with ``DMGL_NO_OPTS`` unless it is verbose (``tools/perf/util/symbol-elf.c``): a name per function
reads best in a table. Mangling: https://itanium-cxx-abi.github.io/cxx-abi/abi.html#mangling,
https://rust-lang.github.io/rfcs/2603-rust-symbol-name-mangling-v0.html.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

LONGEST_NAME = 4096
_ATTEMPTS = 8
"""So many names may end the worker; the others then stay as they are."""
_TIME_S = 20.0
"""For all names of one call: a usual one takes microseconds, starting the worker a tenth of a second."""
_MANGLED = re.compile(r"(_Z|_R)[0-9A-Za-z_.$@]+", re.ASCII)
_OPENING, _CLOSING = "<([{", ">)]}"
_OPERATOR = re.compile(
    r"\boperator(?:\(\)|\[\]|->\*?|<=>|<<=?|>>=?|[<>]=?|&&|\|\||\+\+|--|[-+*/%^&|!=]=?|[~,]|\"\" ?\w+"
    r"| (?:new|delete)(?:\[\])?| co_await\b| )"
)
_AFTER_PARAMETERS = re.compile(r"(?: const| volatile| noexcept| ?&&?)*((?: \[clone [^\]]*\])*)")
_THUNKS = ("virtual thunk to ", "non-virtual thunk to ", "covariant return thunk to ", "transaction clone for ")


def is_mangled(name: str) -> bool:
    """Whether ``demangled`` may have another name for this one."""
    return len(name) <= LONGEST_NAME and _MANGLED.fullmatch(name) is not None


def demangled(names: Iterable[str]) -> dict[str, str]:
    """What is to be shown for each name that is mangled; others, and those that no library reads, are not in it. Never raises.

    Names come from guests and may be made to break their readers, so those work in a process of their own
    (``demangle_worker.py``), which is started only when there is something to read.
    """
    waiting = sorted({name for name in names if is_mangled(name)})
    known: dict[str, str] = {}
    give_up = time.monotonic() + _TIME_S
    for _ in range(_ATTEMPTS):
        left_s = give_up - time.monotonic()
        if not waiting or left_s <= 0:
            break
        answers = _asked(waiting, left_s)
        known.update(zip(waiting, answers, strict=False))
        waiting = waiting[len(answers) + 1 :]  # the name after the last answer ended the worker
    return {name: without_parameters(text) if name.startswith("_Z") else text for name, text in known.items() if name != text}


def _asked(names: list[str], time_s: float) -> list[str]:
    """The worker's answers, up to the name that ended it."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("demangle_worker.py"))]
    text = "".join([f"{name}\n" for name in names]).encode()
    try:
        done = subprocess.run(command, input=text, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=time_s, check=False)
        output = done.stdout
    except subprocess.TimeoutExpired as late:
        output = late.stdout or b""
    except (OSError, ValueError):
        return []
    return output.decode("utf-8", "replace").split("\n")[: len(names) + 1][:-1]


def without_parameters(text: str) -> str:
    """A demangled C++ function's name alone: ``void f<int>(int) const`` becomes ``f<int>``.

    Left as it is where it is no function, or too unusual: a function that returns a pointer to a function.
    """
    groups, separators = _outermost(text)
    if groups is None or separators is None or not groups:
        return text
    start, end = groups[-1]
    after = _AFTER_PARAMETERS.fullmatch(text, end)
    if after is None or start == 0 or (text[start - 1] == ")" and not text.endswith("operator()", 0, start)):
        return text
    name = text[:start]
    if not name.startswith(_THUNKS):
        begin = max((position + 1 for position in separators if position < start), default=0)
        name = name[begin:]
    return name + after[1] if name else text


def _outermost(text: str) -> tuple[list[tuple[int, int]] | None, list[int] | None]:
    """Where parentheses stand outside of all brackets, as [start, end), and the blanks there that may follow a return type.

    None where brackets do not match.
    """
    groups, separators = [], []
    opened: list[tuple[int, str]] = []
    position = 0
    converts = False
    while position < len(text):
        letter = text[position]
        if not opened and (operator := _OPERATOR.match(text, position)):
            position = operator.end()
            converts = converts or text[position - 1] == " "
            continue
        if letter in _OPENING:
            opened.append((position, letter))
        elif letter in _CLOSING:
            if not opened or _OPENING.index(opened[-1][1]) != _CLOSING.index(letter):
                return None, None
            start, _ = opened.pop()
            if not opened and letter == ")":
                groups.append((start, position + 1))
        elif (
            letter == " " and not opened and not converts and text[position - 1] != ")" and text[position + 1 : position + 2] != "<"
        ):
            separators.append(position)
        position += 1
    return (None, None) if opened else (groups, separators)
