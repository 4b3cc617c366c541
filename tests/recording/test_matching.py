"""What is the same code in two recordings, and what is not."""

from __future__ import annotations

import pytest

from recording.matching import UNNAMED, Key, function_key, task_name
from recording.model import FrameKind
from recording.names import Function

KERNEL, MODULE, USER, UNKNOWN = FrameKind.KERNEL, FrameKind.MODULE, FrameKind.USER, FrameKind.UNKNOWN


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vfs_read", "vfs_read"),
        ("foo.isra.0", "foo"),
        ("foo.constprop.0.isra.12.cold", "foo"),
        ("foo.part.3", "foo"),
        ("foo.llvm.1234567", "foo"),
        ("foo.cold", "foo"),
        ("__x64_sys_read", "sys_read"),
        ("__arm64_sys_read", "sys_read"),
        ("__arm64_compat_sys_ioctl", "sys_ioctl"),
        ("ksys_read", "ksys_read"),
        ("do_sys_openat2", "do_sys_openat2"),
        ("foo.isra", "foo"),
        ("foo.bar", "foo.bar"),
        (".cold", ".cold"),
        ("", ""),
    ],
)
def test_names_of_the_kernel(name: str, expected: str) -> None:
    assert function_key(Function(name, "[kernel]", KERNEL)) == Key(expected, "[kernel]", KERNEL)


def test_names_of_user_code_and_files() -> None:
    on_one = Function("std::sort(int*) [clone .isra.0]", "/usr/lib/x86_64-linux-gnu/libfoo.so.1", USER)
    on_other = Function("std::sort(int*)", "/usr/lib/aarch64-linux-gnu/libfoo.so.1", USER)
    assert function_key(on_one) == function_key(on_other) == Key("std::sort(int*)", "libfoo.so.1", USER)
    rust = Function("core::fmt::write::h0123456789abcdef", "/usr/bin/rg", USER)
    assert function_key(rust).name == "core::fmt::write"
    # A system call's name is one in the kernel only.
    assert function_key(Function("__x64_sys_read", "/bin/x", USER)).name == "__x64_sys_read"


def test_addresses_are_never_compared() -> None:
    def key(name: str, module: str, kind: FrameKind) -> Key:
        return function_key(Function(name, module, kind))

    assert key("0xffffffff81000000", "[kernel]", KERNEL) == key("0xffffffff9a000000", "[kernel]", KERNEL)
    assert key("libcrypto.so.3+0x29b380", "/lib/libcrypto.so.3", USER) == Key(UNNAMED, "libcrypto.so.3", USER)
    assert key("? 0xffffffffc0000000", "[e1000]", MODULE) == Key(UNNAMED, "[e1000]", MODULE)
    assert key("0x1", "[unknown]", UNKNOWN) != key("0x1", "[kernel]", KERNEL)


def test_the_same_name_elsewhere_is_another_function() -> None:
    assert function_key(Function("init", "[e1000]", MODULE)) != function_key(Function("init", "[ext4]", MODULE))
    assert function_key(Function("init", "[kernel]", KERNEL)) != function_key(Function("init", "/bin/a", USER))


def test_the_kernels_workers_are_one() -> None:
    assert task_name("kworker/0:1-events") == task_name("kworker/u8:3") == "kworker"
    assert task_name("ksoftirqd/0") == "ksoftirqd/0"
    assert task_name("kworker/0:1\nevil") == "kworker"
