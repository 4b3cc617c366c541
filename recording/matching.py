"""Names of two recordings become keys that are equal where both mean the same code, across builds, kernels and architectures.

No key has an address, a process number, or what a compiler has made of a name.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from recording.model import FrameKind
from recording.names import Function

UNNAMED = "[no symbol]"
"""All functions of a module that no symbol names."""
_ADDRESS = re.compile(r"(\? )?(.*\+)?0x[0-9a-f]+", re.DOTALL)
_CLONE = re.compile(r"(?:\.(?:isra|constprop|part|cold|hot|unlikely|warm|lto_priv|localalias|llvm)(?:\.\d+)*| \[clone [^\]]*\])+$")
"""What GCC and Clang append to the names of copies and pieces of functions; where there are several in one line, all of them."""
_RUST_HASH = re.compile(r"::h[0-9a-f]{16}$")
_SYSTEM_CALL = re.compile(r"__[a-z0-9]+_(?:compat_)?(?=sys_)")
_WORKER = re.compile(r"kworker/.*", re.DOTALL)


class Key(NamedTuple):
    """What a row of a comparison is counted by."""

    name: str
    module: str
    kind: FrameKind


def function_key(function: Function) -> Key:
    """A function by its source's name, in a module by its name or a file by its name without directories.

    ``foo.isra.0`` and ``foo.cold`` are ``foo``; ``__x64_sys_read`` and ``__arm64_sys_read`` are ``sys_read``; what no symbol
    names is one for each module.
    """
    module = module_name(function)
    if _ADDRESS.fullmatch(function.name):
        return Key(UNNAMED, module, function.kind)
    name = _RUST_HASH.sub("", _CLONE.sub("", function.name))
    if function.kind is FrameKind.KERNEL:
        name = _SYSTEM_CALL.sub("", name, count=1) if _SYSTEM_CALL.match(name) else name
    return Key(name or function.name, module, function.kind)


def module_name(function: Function) -> str:
    """A file's name; its directory differs between architectures, and between a distribution's releases."""
    return function.module.rpartition("/")[2] if function.kind is FrameKind.USER else function.module


def task_name(name: str) -> str:
    """A process or thread by its name; the kernel's workers, which any work may get, are one."""
    return _WORKER.sub("kworker", name)
