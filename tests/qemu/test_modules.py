"""Modules of stock kernels: stacks through them are whole, every frame has the name that the kernel itself gives it.

The guest loads modules from its initramfs and uses them: files on an overlay, a disk in a file on it, and a module that measures
for a while when it is loaded, loaded and unloaded again and again. What its own /proc/kallsyms says is the truth.

By default one kernel of each layout of ``struct module`` (``core_layout``, ``mem``); GUESTPROF_ALL_KERNELS=1 runs all four.
"""

from __future__ import annotations

import gzip
import re
import shutil
import stat
import subprocess
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from guest.elf.source_cache import SourceCache
from guest.host_files import HostFiles, HostFinder
from guestprof.cli import cli
from guestprof.initramfs import WORKLOAD_MARK, Entry, find_busybox, pack_newc
from recording.errors import BadImageError, MissingDependencyError
from recording.model import Event, Frame, FrameKind, Sample, Space, UserEnd
from recording.names import Namer
from recording.profile import Profile
from recording.reader import Recording
from sampler.replay import replay
from tests.conftest import BOOT_ATTEMPTS, generations
from tests.qemu.command import guestprof
from tests.qemu.guests import Guest, GuestCrashedError, GuestOptions
from tests.qemu.kernel_modules import find_modules, module_entries, modules_directory
from tests.qemu.relay import Relay
from unwind.arch.x86_64 import X86_64

pytestmark = pytest.mark.qemu

LAYOUTS = generations("6.1", "7.2")
MODULES = ("overlay", "loop", "raid6_pq")
BPF_MARK = "guestprof: bpf"
SECONDS = "8"
SECONDS_REMOTE = "6"
MIN_FRAMES = 30
MIN_WHOLE = 0.98
MIN_WHOLE_REMOTE = 0.95
"""Through the stub alone modules are looked for ten times a second: code that was loaded a moment ago may be gone before that."""
_LOW, _HIGH = X86_64.kernel_code.module_area
_SYMBOL = re.compile(r"^([0-9a-f]{16}) [tTwW] (\S+)\s+\[(\w+)\]\r?$", re.MULTILINE)

_INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
echo 0 >/proc/sys/kernel/kptr_restrict
while read -r file; do insmod "$file"; done </modules/list
mkdir -p /tmp/upper /tmp/work /merged
mount -t overlay -o lowerdir=/bin,upperdir=/tmp/upper,workdir=/tmp/work overlay /merged
dd if=/dev/zero of=/merged/disk bs=1M count=8 2>/dev/null
losetup /dev/loop0 /merged/disk
grep -E '\\[(overlay|loop)\\]' /proc/kallsyms
rmmod raid6_pq
work() {{
    while :; do
        find /merged >/dev/null
        dd if=/dev/zero of=/dev/loop0 bs=64k count=64 conv=fsync
        dd if=/merged/disk of=/dev/null bs=4k
        cp /merged/busybox /merged/copy
        rm /merged/copy
    done
}}
load() {{ while :; do insmod /modules/raid6_pq.ko; rmmod raid6_pq; sleep 0.5; done; }}
work >/dev/null 2>&1 &
load >/dev/null 2>&1 &
[ ! -x /bpf ] || /bpf &
echo "{WORKLOAD_MARK}"
while :; do sleep 1; done
"""

_BPF = """
#include <linux/bpf.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* for (r6 = 500; r6; r6--) bpf_ktime_get_ns(); return 0; */
static struct bpf_insn program[] = {
    {.code = 0xb7, .dst_reg = 6, .imm = 500}, {.code = 0x85, .imm = 5},  {.code = 0x17, .dst_reg = 6, .imm = 1},
    {.code = 0x55, .dst_reg = 6, .off = -3},  {.code = 0xb7},            {.code = 0x95},
};

int main(void)
{
    union bpf_attr load;
    int sockets[2];

    memset(&load, 0, sizeof load);
    load.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
    load.insns = (uintptr_t)program;
    load.insn_cnt = sizeof program / sizeof *program;
    load.license = (uintptr_t)"GPL";
    strcpy(load.prog_name, "spin");
    int loaded = syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load);
    socketpair(AF_UNIX, SOCK_DGRAM, 0, sockets);
    if (loaded < 0 || setsockopt(sockets[1], SOL_SOCKET, SO_ATTACH_BPF, &loaded, sizeof loaded))
        return 1;
    puts("MARK");
    fflush(stdout);
    for (;;) {
        for (int i = 0; i < 100; i++)
            write(sockets[0], "", 1);
        usleep(20000);
    }
}
""".replace("MARK", BPF_MARK)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recording of a guest with modules, another of it through the stub alone, and what the guest printed.

    kernel, modules: its image, and the directory of its modules' files.
    """

    path: Path
    remote: Path
    console: str
    kernel: Path
    modules: Path

    def samples(self) -> list[Sample]:
        with Recording.open(self.path) as recording:
            return list(recording.samples())

    def namer(self) -> Namer:
        with Recording.open(self.path) as recording:
            return Namer(recording.images())

    def events(self, kind: str) -> list[Event]:
        with Recording.open(self.path) as recording:
            return [event for event in recording.events() if event.kind == kind]


@pytest.fixture(scope="module")
def bpf_program(tmp_path_factory: pytest.TempPathFactory) -> bytes | None:
    """A program that runs a BPF program in its kernel again and again, None without a compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    directory = tmp_path_factory.mktemp("bpf")
    (directory / "bpf.c").write_text(_BPF)
    command = [compiler, "-static", "-O1", "-o", str(directory / "bpf"), str(directory / "bpf.c")]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        warnings.warn(f"no BPF program: {built.stderr[:300]}", stacklevel=1)
        return None
    return (directory / "bpf").read_bytes()


@pytest.fixture(scope="module", params=list(LAYOUTS.values()), ids=list(LAYOUTS))
def recorded(
    request: pytest.FixtureRequest,
    guest_kernel: Callable[[str], Path],
    bpf_program: bytes | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Recorded]:
    """Some seconds of a guest with modules at work, with --raw; the tests share them."""
    directory = tmp_path_factory.mktemp("modules")
    kernel = guest_kernel(request.param)
    try:
        entries = module_entries(find_modules(kernel, request.param, MODULES))
        initramfs = build(directory, entries, bpf_program)
    except MissingDependencyError as error:
        warnings.warn(f"no real guest: {error}", stacklevel=1)
        pytest.skip(str(error))
    for attempt in range(BOOT_ATTEMPTS):
        with Guest(GuestOptions(kernel, initramfs)) as guest:
            try:
                guest.wait_for(WORKLOAD_MARK)
                if bpf_program is not None:
                    guest.wait_for(BPF_MARK)
            except GuestCrashedError:
                if attempt == BOOT_ATTEMPTS - 1:
                    raise
                continue
            path = directory / "a.guestprof"
            guestprof("record", "--connect", guest.target, "-F", "200", "-d", SECONDS, "--raw", "-o", path, "-q")
            remote = directory / "b.guestprof"
            with Relay(guest.gdb) as relay:
                guestprof("record", "--connect", relay.address, "-F", "100", "-d", SECONDS_REMOTE, "-o", remote, "-q")
            console = guest.console_text()
        yield Recorded(path, remote, console, kernel, modules_directory(kernel, request.param))
        return


def build(directory: Path, modules: list[Entry], bpf_program: bytes | None) -> Path:
    """The guest's initramfs."""
    entries = [Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "proc", "tmp")]
    entries.append(Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)))
    entries.append(Entry("bin/busybox", stat.S_IFREG | 0o755, find_busybox()))
    entries.append(Entry("init", stat.S_IFREG | 0o755, _INIT.encode()))
    if bpf_program is not None:
        entries.append(Entry("bpf", stat.S_IFREG | 0o755, bpf_program))
    path = directory / "initramfs.gz"
    path.write_bytes(gzip.compress(pack_newc([*entries, *modules]), 1))
    return path


def loaded_frames(sample: Sample) -> list[Frame]:
    """Frames in modules and generated code."""
    return [frame for frame in sample.callchain.frames if frame.space is Space.KERNEL and _LOW <= frame.lookup_pc < _HIGH]


def test_files_of_modules_lie_where_the_guest_has_them(recorded: Recorded) -> None:
    truth = {(module, name): int(address, 16) for address, name, module in _SYMBOL.findall(recorded.console)}
    with Recording.open(recorded.path) as recording:
        images = {image.name: image for image in recording.images() if image.name in ("overlay", "loop")}
    assert len(images) == 2
    finder = HostFinder(HostFiles(symbol_dirs=(recorded.modules,)), SourceCache(None))
    for name, image in images.items():
        match = finder.find(image, warnings.warn)
        assert match is not None
        with match.file as file:
            assert file.build_id == image.build_id is not None
            names = [symbol.name for symbol in file.symbols()]
            once = [symbol for symbol in file.symbols() if names.count(symbol.name) == 1 and (name, symbol.name) in truth]
            assert len(once) >= MIN_FRAMES
            assert all(match.placement.to_file(truth[name, symbol.name]) == symbol.address for symbol in once)


def test_the_stripped_boot_image_has_nothing_to_tell_and_that_is_said(recorded: Recorded) -> None:
    command = ["symbolize", str(recorded.path), "--vmlinux", str(recorded.kernel)]
    result = CliRunner().invoke(cli, command)
    assert isinstance(result.exception, BadImageError)
    assert "has no symbols" in str(result.exception)


def test_module_frames_have_the_kernels_own_names(recorded: Recorded) -> None:
    symbols = sorted((int(address, 16), name, module) for address, name, module in _SYMBOL.findall(recorded.console))
    starts = [address for address, _name, _module in symbols]
    namer = recorded.namer()
    wrong, seen, unnamed = [], 0, []
    for sample in recorded.samples():
        for frame in loaded_frames(sample):
            named = namer.name(frame, sample.boot)
            if named.kind not in (FrameKind.MODULE, FrameKind.BPF):
                unnamed.append((hex(frame.pc), named))
            if named.module not in ("[overlay]", "[loop]"):
                continue
            seen += 1
            start = starts[bisect_right(starts, frame.lookup_pc) - 1]
            if (start, named.name, named.module.strip("[]")) not in symbols:
                wrong.append((hex(frame.pc), named))
    assert not wrong
    assert seen >= MIN_FRAMES
    # A halt may hit a module that is loaded or unloaded right then.
    assert len(unnamed) <= seen // 50, unnamed


def test_stacks_through_modules_are_whole(recorded: Recorded) -> None:
    chains = [sample.callchain for sample in recorded.samples() if loaded_frames(sample)]
    broken = [(chain.end, [hex(frame.pc) for frame in chain.frames]) for chain in chains if not chain.end.is_proper]
    assert 1 - len(broken) / len(chains) >= MIN_WHOLE, broken[:10]


def test_loading_and_unloading_is_noticed(recorded: Recorded) -> None:
    loaded, unloaded = recorded.events("module-loaded"), recorded.events("module-unloaded")
    base = min(int(address, 16) for address, _name, module in _SYMBOL.findall(recorded.console) if module == "overlay")
    assert sum(event.text.startswith("overlay at 0x") for event in loaded) == 1
    text = next(event.text for event in loaded if event.text.startswith("overlay"))
    assert 0 <= base - int(text.split()[2], 16) < 0x1000
    assert sum(event.text.startswith("raid6_pq") for event in loaded) >= 1
    assert {event.text.split()[0] for event in unloaded} == {"raid6_pq"}


def test_the_code_of_a_modules_start_is_named(recorded: Recorded) -> None:
    """``raid6_pq`` measures for a while in code that is freed right after."""
    namer = recorded.namer()
    names = {
        namer.name(frame, sample.boot).name
        for sample in recorded.samples()
        for frame in loaded_frames(sample)
        if namer.name(frame, sample.boot).module == "[raid6_pq]"
    }
    assert names & {"init_module", "raid6_select_algo", "raid6_init"}


def test_bpf_programs_are_named(recorded: Recorded, bpf_program: bytes | None) -> None:
    if bpf_program is None:
        warnings.warn("no BPF program: no C compiler (package gcc) that links statically", stacklevel=1)
        pytest.skip("no C compiler that links statically")
    namer = recorded.namer()
    chains = [
        sample.callchain
        for sample in recorded.samples()
        if any(re.fullmatch(r"bpf_prog_[0-9a-f]{16}_spin", namer.name(frame, 0).name) for frame in loaded_frames(sample))
    ]
    assert len(chains) >= 5
    assert all(chain.end.is_proper for chain in chains), [chain.end for chain in chains]


def test_a_replay_gives_the_same_stacks_through_modules(recorded: Recorded) -> None:
    with Recording.open(recorded.path) as recording:
        compared = 0
        for sample, chain in replay(recording):
            if not loaded_frames(sample):
                continue
            compared += 1
            kernel = [frame for frame in sample.callchain.frames if frame.space is Space.KERNEL]
            again = [frame for frame in chain.frames if frame.space is Space.KERNEL]
            assert [(frame.pc, frame.lookup_pc, frame.guess) for frame in again] == [
                (frame.pc, frame.lookup_pc, frame.guess) for frame in kernel
            ]
            assert chain.end is sample.callchain.end
    assert compared >= MIN_FRAMES // 2


def test_modules_and_user_stacks_through_the_stub_alone(recorded: Recorded, bpf_program: bytes | None) -> None:
    """Without QEMU's process and without QMP: mappings, files in the page cache and modules come in short halts between samples."""
    with Recording.open(recorded.remote) as recording:
        samples, namer = list(recording.samples()), Namer(recording.images())
        quality = Profile(recording).quality()
    assert quality.task_share is not None
    assert quality.task_share >= 0.99
    chains = [sample.callchain for sample in samples if loaded_frames(sample)]
    assert len(chains) >= MIN_FRAMES // 2
    names = [namer.name(frame, sample.boot) for sample in samples for frame in loaded_frames(sample)]
    assert sum(named.kind in (FrameKind.MODULE, FrameKind.BPF) for named in names) >= MIN_WHOLE * len(names)
    assert sum(chain.end.is_proper for chain in chains) >= MIN_WHOLE_REMOTE * len(chains)
    if bpf_program is None:
        return
    # The one program of this guest that has unwind tables.
    own = [sample for sample in samples if sample.task is not None and sample.task.comm == "bpf"]
    ends = [end for sample in own if (end := sample.callchain.user_end) not in (None, UserEnd.NOT_READ)]
    assert len(ends) >= 5
    assert sum(end.is_proper for end in ends) >= 0.9 * len(ends), ends
    whole = [sample.callchain.frames for sample in own if sample.callchain.user_end is UserEnd.THREAD_START]
    assert {namer.name(frames[-1], 0).name for frames in whole} == {"_start"}
    assert any("main" in {namer.name(frame, 0).name for frame in frames} for frames in whole)
