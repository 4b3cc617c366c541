"""Mangled names, one a line on standard input, become readable ones, one a line on standard output, in their order.

This is a program of its own, run by ``recording/demangle.py``: libstdc++'s demangler takes gigabytes and minutes for 300 hostile
characters (each substitution doubles the text), and runs out of its stack for others; both end this process alone. A line is
answered by itself where it is no mangled name, or where the library for it is not installed.
"""

from __future__ import annotations

import re
import resource
import signal
import sys
from collections.abc import Callable

_MEMORY = 1 << 29
_NAME_S = 0.25
"""Processor time for one name. A usual one takes microseconds."""
_LONGEST_ANSWER = 1 << 14
_RUST_HASH = re.compile(r"::h[0-9a-f]{16}(?=$|\.)")
_LEGACY_RUST = re.compile(r"_ZN.*17h[0-9a-f]{16}E(\.|$)")
"""A C++ name may end so as well, but nobody calls a function h0123456789abcdef."""


def _cplusplus() -> Callable[[str], str]:
    try:
        from cxxfilt import demangle  # noqa: PLC0415 - may be missing, and looks for libstdc++ when it is imported
    except Exception:  # noqa: BLE001 - without the library, or libstdc++, or with a broken one, names stay as they are
        return lambda name: name
    return lambda name: str(demangle(name))


def _rust() -> Callable[[str], str]:
    try:
        from rust_demangler import demangle  # noqa: PLC0415 - may be missing
    except Exception:  # noqa: BLE001 - see above
        return lambda name: name
    return lambda name: _RUST_HASH.sub("", _whole(str(demangle(name))))


def _whole(text: str) -> str:
    """The library writes ``?`` where it gave up."""
    if "?" in text:
        raise ValueError(text)
    return text


def main() -> None:
    """Answer until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cplusplus, rust = _cplusplus(), _rust()
    answers, sys.stdout = sys.stdout, sys.stderr  # rust_demangler prints what it cannot read
    for line in sys.stdin:
        name = line.rstrip("\n")
        signal.setitimer(signal.ITIMER_PROF, _NAME_S)  # SIGPROF ends the process, also within the library
        try:
            answer = (rust if name.startswith("_R") or _LEGACY_RUST.match(name) else cplusplus)(name)
        except Exception:  # noqa: BLE001 - whatever the libraries raise, the name stays as it is
            answer = name
        signal.setitimer(signal.ITIMER_PROF, 0)
        fits = answer and len(answer) <= _LONGEST_ANSWER and answer.isprintable()
        answers.write(f"{answer if fits else name}\n")
        answers.flush()


if __name__ == "__main__":
    main()
