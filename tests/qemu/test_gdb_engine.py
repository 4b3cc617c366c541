"""``--engine gdb`` on real guests: the stacks are gdb's, and whatever becomes of gdb or guestprof, the guest runs on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from recording.errors import MissingDependencyError
from recording.model import StackEnd
from recording.names import Namer
from recording.reader import Recording
from tests.conftest import skip_loudly
from tests.qemu.aftermath import await_guards_end, await_samples, sample_count
from tests.qemu.avr_guest import AvrGuest, build, gdb_of, line_of
from tests.qemu.bare_guests import CORTEX_M, X86_64, BareGuest
from tests.qemu.bare_guests import PATHS as BARE_PATHS
from tests.qemu.bare_guests import build as build_bare
from tests.qemu.command import guestprof, report_of, start_guestprof
from tests.qemu.guests import PC

pytestmark = [pytest.mark.qemu, pytest.mark.statistical]

PATHS = {("_start", "main", "alpha", "shared"), ("_start", "main", "beta", "shared")}
"""The longest stacks of the guest; those of a moment between two calls are a part of one."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("avr"))


@pytest.fixture(scope="module")
def guest(program: Path) -> Iterator[AvrGuest]:
    with AvrGuest(program) as running:
        yield running


def engine(guest: AvrGuest) -> tuple[str | Path, ...]:
    return "--connect", guest.target, "--engine", "gdb", "--gdb", "avr-gdb", "--elf", guest.program


def stacks_of(path: Path) -> set[tuple[str, ...]]:
    """The names of the functions of each stack, root first."""
    with Recording.open(path) as recording:
        namer = Namer(recording.images())
        chains = recording.callchains().values()
        return {tuple(namer.name(frame, 0).name for frame in reversed(chain.frames)) for chain in chains}


def start(guest: AvrGuest, path: Path, *options: str) -> subprocess.Popen[str]:
    process = start_guestprof("record", *engine(guest), "-F", "50", "-o", path, *options)
    await_samples(path, 5)
    return process


def end(process: subprocess.Popen[str], status: int) -> str:
    _output, said = process.communicate(timeout=60)
    assert process.returncode == status, said
    assert "Traceback" not in said
    return said


def assert_goes_on(guest: AvrGuest) -> None:
    await_guards_end(guest.directory)
    assert guest.status() == "running"


def test_shares_and_paths(guest: AvrGuest, tmp_path: Path) -> None:
    path = tmp_path / "a"
    said = guestprof("record", *engine(guest), "-F", "200", "-d", "3", "-o", path).stderr
    assert "100.0% of kernel stacks whole" in said
    report = report_of(path)
    assert (report["quality"]["complete_share"], report["quality"]["ends"]) == (1.0, {"task-root": report["quality"]["samples"]})
    assert report["meta"]["architecture"] == "avr:6"
    assert report["meta"]["engine"].startswith("GNU gdb")
    # By samples and not by time: on a busy machine one of them may stand for a tenth of it.
    samples = {row["name"]: row["samples"] for row in report["functions"]}
    whole = report["quality"]["samples"]
    assert samples["shared"] > 0.95 * whole
    # Four standard deviations.
    assert abs(samples["beta"] - 0.75 * whole) < 4 * (0.75 * 0.25 * whole) ** 0.5
    assert {row["module"] for row in report["functions"]} == {"known_paths.elf"}
    lines = {tuple(row["name"].rpartition("/")[2].split(":")) for row in report_of(path, "--by", "line")["lines"]}
    assert ("known_paths.c", str(line_of("shared"))) in lines
    inlined = {row["name"]: row for row in report_of(path, "--inlined")["functions"] if "inlined" in row}
    assert set(inlined) == {"helper"}
    assert inlined["helper"]["samples"] > 0.9 * samples["beta"]
    assert stacks_of(path) >= PATHS
    assert all(any(longest[: len(stack)] == stack for longest in PATHS) for stack in stacks_of(path))
    assert_goes_on(guest)


def test_dump(guest: AvrGuest) -> None:
    told = json.loads(guestprof("dump", *engine(guest), "--json").stdout)
    assert [each["vcpu"] for each in told] == [0]
    names = [frame["name"] for frame in told[0]["frames"]]
    assert names[-2:] == ["main", "_start"]
    assert told[0]["frames"][-2]["path"].endswith("known_paths.c")
    assert told[0]["end"] == "task-root"
    assert_goes_on(guest)


def test_ctrl_c_ends_it_with_what_was_recorded(guest: AvrGuest, tmp_path: Path) -> None:
    path = tmp_path / "a"
    process = start(guest, path)
    process.send_signal(signal.SIGINT)
    end(process, 0)
    assert sample_count(path) >= 5
    assert_goes_on(guest)


def test_gdb_is_killed(guest: AvrGuest, tmp_path: Path) -> None:
    path = tmp_path / "a"
    process = start(guest, path)
    gdb_of(process.pid).kill()
    said = end(process, 1)
    assert "avr-gdb was killed by signal 9; the guest runs on" in said.splitlines()[-1]
    assert sample_count(path) >= 5
    assert stacks_of(path) & PATHS
    assert_goes_on(guest)


def test_gdb_hangs(guest: AvrGuest, tmp_path: Path) -> None:
    path = tmp_path / "a"
    process = start(guest, path, "--gdb-timeout", "1")
    gdb = gdb_of(process.pid)
    gdb.suspend()
    said = end(process, 1)
    assert "avr-gdb hangs: 1 s were not enough for " in said.splitlines()[-1]
    assert sample_count(path) >= 5
    assert not gdb.is_running()
    assert_goes_on(guest)


def test_guestprof_is_killed(guest: AvrGuest, tmp_path: Path) -> None:
    path = tmp_path / "a"
    process = start(guest, path)
    gdb = gdb_of(process.pid)
    process.kill()
    process.communicate(timeout=60)
    _gone, left = psutil.wait_procs([gdb], 30)
    assert not left
    assert sample_count(path) >= 5
    assert_goes_on(guest)


def test_the_guest_ends(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "a"
    with AvrGuest(program) as guest:
        process = start(guest, path)
        guest.process.kill()
        said = end(process, 0)
    assert "closed the connection" in said
    assert sample_count(path) >= 5


def test_there_is_no_gdb(guest: AvrGuest, tmp_path: Path) -> None:
    options = ("--connect", guest.target, "-o", tmp_path / "a", "--engine", "gdb", "--gdb")
    said = guestprof("record", *options, "no-such-gdb", status=1).stderr
    assert said.startswith("guestprof: no-such-gdb is not installed, and --engine gdb needs one; install it")
    assert guestprof("record", *options, "avr-gdb", "--gdb-command", "nonsense", status=1).stderr == (
        'guestprof: gdb refuses \'nonsense\': Undefined command: "nonsense".  Try "help".\n'
    )
    assert not (tmp_path / "a").exists()
    assert_goes_on(guest)


def test_a_guest_that_the_own_engine_knows_too(tmp_path: Path) -> None:
    try:
        kernel = build_bare(X86_64, tmp_path / "work.elf", flags=("-g",))
    except MissingDependencyError as error:
        skip_loudly(str(error))
        raise
    path = tmp_path / "a"
    with BareGuest(X86_64, kernel, "-smp", "2") as guest:
        by_gdb = ("--connect", guest.target, "--engine", "gdb")
        guestprof("record", *by_gdb, "--elf", kernel, "-F", "200", "-d", "2", "-o", path)
        told = json.loads(guestprof("dump", *by_gdb, "--vmlinux", kernel, "--json").stdout)
    assert [frame["name"] for frame in told[0]["frames"]][-2:] == ["main", "_start"]
    with Recording.open(path) as recording:
        samples, namer = list(recording.samples()), Namer(recording.images(), recording.source_lines())
    assert {sample.vcpu for sample in samples} == {0, 1}
    seen = set()
    for chain in (sample.callchain for sample in samples if sample.vcpu == 0):
        names = [namer.name(frame, 0).name for frame in reversed(chain.frames)]
        if names[-1] in BARE_PATHS:
            assert names[-len(BARE_PATHS[names[-1]]) :] == BARE_PATHS[names[-1]]
            assert chain.end is StackEnd.TASK_ROOT
            named = [each for frame in chain.frames for each in namer.names(frame, 0)]
            assert all(each.line and each.path and each.path.endswith(("work.c", "x86_64.S")) for each in named)
            seen.add(names[-1])
    assert seen == set(BARE_PATHS)


def test_a_cortex_m(tmp_path: Path) -> None:
    """The own engine says that it knows no processor without an MMU here, gdb does."""
    if shutil.which("gdb-multiarch") is None:
        skip_loudly("gdb-multiarch is not installed")
    try:
        kernel = build_bare(CORTEX_M, tmp_path / "work.elf")
    except MissingDependencyError as error:
        skip_loudly(str(error))
        raise
    path = tmp_path / "a"
    with BareGuest(CORTEX_M, kernel) as guest:
        options = ("--connect", guest.target, "--elf", kernel, "-F", "200", "-d", "2", "-o", path)
        assert "--engine gdb" in guestprof("record", *options, status=1).stderr
        guestprof("record", *options, "--engine", "gdb", "--gdb", "gdb-multiarch")
    paths = {("_start", *BARE_PATHS[leaf]) for leaf in BARE_PATHS}
    found = stacks_of(path)
    assert found >= paths
    assert all(any(longest[: len(stack)] == stack for longest in paths) for stack in found)
    assert report_of(path)["quality"]["complete_share"] == 1.0


def test_a_boot_of_a_kernel_that_gdb_has_no_symbols_of(
    guest_kernel: Callable[..., Path], guest_initramfs: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    qemu = [PC.qemu, "-cpu", PC.cpu, "-smp", "2", "-m", "512", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    files = ["-kernel", str(guest_kernel("bookworm")), "-initrd", str(guest_initramfs), "-append", "earlyprintk=ttyS0"]
    until = ("--until-console", "Linux version", "-d", "100")
    guestprof("boot", "--engine", "gdb", "-F", "50", *until, "-o", path, "--", *qemu, *files)
    with Recording.open(path) as recording:
        chains = recording.callchains()
        samples = list(recording.samples())
    assert {sample.vcpu for sample in samples} == {0, 1}
    # Without a function there is nothing that gdb could unwind by: the address alone.
    assert {len(chain.frames) for chain in chains.values()} == {1}
    assert {chain.end.value for chain in chains.values()} == {"no-unwind-info"}
    assert any(frame.pc >> 47 == 0x1FFFF for chain in chains.values() for frame in chain.frames)


def test_a_gdb_for_another_architecture(guest: AvrGuest, tmp_path: Path) -> None:
    for name in ("gdb", "gdb-multiarch"):
        try:
            said = guestprof("record", "--connect", guest.target, "--engine", "gdb", "--gdb", name, "-o", tmp_path / "a", status=1)
        except AssertionError as error:
            if "is not installed" in str(error):
                continue
            raise
        assert "gdb cannot work with the stub: " in said.stderr
        assert_goes_on(guest)
        return
    skip_loudly("neither gdb nor gdb-multiarch is installed")
