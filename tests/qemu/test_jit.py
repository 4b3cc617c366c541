"""Code that programs made at run time, by the names that they gave it: on tmpfs, in namespaces of their own, on overlayfs."""

from __future__ import annotations

import re
import stat
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from guestprof.initramfs import Entry, find_busybox, pack_newc
from recording.errors import MissingDependencyError
from recording.model import FrameKind
from recording.profile import Profile
from recording.reader import Recording
from tests.conftest import skip_loudly
from tests.guests.build import Program, build_programs
from tests.qemu.command import guestprof
from tests.qemu.guests import Guest, GuestOptions
from tests.qemu.kernel_modules import find_modules, module_entries

pytestmark = [pytest.mark.qemu, pytest.mark.statistical]

JIT = Program("jit", "jit.c", ("-fno-pie", "-no-pie", "-static", "-fno-omit-frame-pointer"))
RUNNING = "jit: running"
PROGRAMS = ("jit-closed", "jit-open", "jit-none", "jit-jailed", "jit-overlay")

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
while read -r f; do insmod "$f"; done </modules/list
root() { mkdir -p $1/bin $1/tmp $1/dev; cp /bin/jit /bin/busybox $1/bin; }
mkdir -p /jail /scratch /ov
mount -t tmpfs jail /jail
root /jail
mount -t tmpfs hidden /jail/tmp
mount -t tmpfs jail /jail/tmp
mount -t tmpfs scratch /scratch
root /scratch/lower
mkdir -p /scratch/upper /scratch/work
mount -t overlay -o lowerdir=/scratch/lower,upperdir=/scratch/upper,workdir=/scratch/work overlay /ov
jit jit-closed closed &
jit jit-open open &
jit jit-none none &
unshare -m -p -f chroot /jail /bin/jit jit-jailed closed &
unshare -m -p -f chroot /ov /bin/jit jit-overlay open &
while :; do sleep 1000; done
"""


def build_initramfs(kernel: Path, suite: str, directory: Path) -> Path:
    build_programs(directory, (JIT,))
    archive = pack_newc(
        [
            *[Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "proc", "tmp")],
            Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            Entry("bin/busybox", stat.S_IFREG | 0o755, find_busybox()),
            Entry("bin/jit", stat.S_IFREG | 0o755, (directory / JIT.name).read_bytes()),
            Entry("init", stat.S_IFREG | 0o755, INIT.encode()),
            *module_entries(find_modules(kernel, suite, ("overlay",))),
        ]
    )
    deflate = zlib.compressobj(1, zlib.DEFLATED, 31)
    path = directory / "initramfs"
    path.write_bytes(deflate.compress(archive) + deflate.flush())
    return path


def test_code_that_programs_made(guest_kernel: Callable[[str], Path], tmp_path: Path) -> None:
    suite = "bookworm"
    kernel = guest_kernel(suite)
    try:
        initramfs = build_initramfs(kernel, suite, tmp_path)
    except MissingDependencyError as error:
        skip_loudly(str(error))
        raise
    path = tmp_path / "jit.guestprof"
    with Guest(GuestOptions(kernel, initramfs, append="quiet")) as guest:
        guest.wait_for(RUNNING, count=len(PROGRAMS))
        guestprof("record", "--connect", guest.target, "-F", "100", "-d", "8", "-o", path, "-q")
        assert guest.status() == "running"
    with Recording.open(path) as recording:
        check(Profile(recording))


def check(profile: Profile) -> None:
    """Every stack in such code is whole and goes through it by name, also code that was made after the recording began."""
    whole: Counter[str] = Counter()
    others: Counter[tuple[str, ...]] = Counter()
    modules: dict[str, set[str]] = defaultdict(set)
    numbers: dict[str, set[int]] = defaultdict(set)
    pids = {}
    for count in profile.counts:
        task = count.origin.task
        if task is None or task.comm not in PROGRAMS:
            continue
        functions = [function for function in count.stack.functions if function.kind is FrameKind.USER]
        names = [function.name for function in functions]
        made = [function for function in functions if function.module.startswith(("[anon]", "[JIT]"))]
        pids[task.comm] = task.tgid
        modules[task.comm] |= {function.module for function in made}
        match = re.fullmatch(r"_start .*main run jit_outer_(\d+) jit_inner_\1", " ".join(names))
        if match is not None or names[-4:] == ["main", "run", "[anon]", "[anon]"]:
            whole[task.comm] += count.samples
            numbers[task.comm] |= {int(match[1])} if match is not None else set()
        elif made:
            others[task.comm, *names] += count.samples
    print(whole, others, modules, dict(numbers))
    assert set(whole) == set(PROGRAMS)
    # On a busy machine the guest gets little done, and its five programs share one processor.
    assert whole.total() > 60
    # A halt between a call and the new frame misses the caller.
    assert others.total() <= 1 + 0.02 * whole.total()
    assert modules == {name: {"[anon]" if name == "jit-none" else f"[JIT] tid {pids[name]}"} for name in PROGRAMS}
    assert numbers["jit-closed"] == numbers["jit-jailed"] == {0}
    assert len(numbers["jit-open"] | numbers["jit-overlay"]) > 3
