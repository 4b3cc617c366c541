"""Real boots compared: a delay of known length is found where it is, equal boots do not differ, KVM and TCG are told apart."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guestprof.initramfs import Entry, find_busybox, pack_newc
from recording.errors import MissingDependencyError
from recording.reader import Recording
from tests.conftest import skip_loudly
from tests.exporters.schemas import check_schema
from tests.qemu.bare_guests import PATHS, SHARES, X86_64_RING3, build
from tests.qemu.built_module import build_module
from tests.qemu.command import guestprof, report_of, run_example
from tests.qemu.guests import QEMU
from tests.qemu.unpacked import unpack_kernel

pytestmark = [pytest.mark.qemu, pytest.mark.statistical]

MACHINE = ("-m", "512", "-nodefaults", "-display", "none", "-serial", "stdio")
TCG = ("-accel", "tcg", "-cpu", "qemu64,-cx16")
LOGIN = "guest login:"
DELAY_MS = 1500
RUNS = 3
INIT = f"""#!/bin/busybox sh
busybox mount -t proc proc /proc
ms=$(busybox sed -n 's/.*spinner.ms=\\([0-9]*\\).*/\\1/p' /proc/cmdline)
turn=0
while [ $turn -lt 5000 ]; do turn=$((turn + 1)); done
busybox insmod /spinner.ko ms=${{ms:-0}}
echo {LOGIN}
while :; do busybox sleep 10; done
"""


@dataclass(frozen=True, slots=True)
class Boots:
    """What ``compare`` said of plain boots and boots in which a module takes DELAY_MS more; their recordings."""

    report: dict[str, Any]
    plain: list[Path]
    slow: list[Path]
    command: tuple[str | Path, ...]


@pytest.fixture(scope="module")
def boots(guest_kernel: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boots]:
    directory = tmp_path_factory.mktemp("compare")
    kernel = guest_kernel("bookworm")
    try:
        module = build_module(kernel, "bookworm", "spinner", directory)
        busybox = find_busybox()
    except MissingDependencyError as error:
        skip_loudly(str(error))
    entries = [
        *(Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "proc", "root")),
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry("bin/busybox", stat.S_IFREG | 0o755, busybox),
        Entry("init", stat.S_IFREG | 0o755, INIT.encode()),
        Entry("spinner.ko", stat.S_IFREG | 0o644, module),
    ]
    (directory / "initramfs").write_bytes(pack_newc(entries))
    command = (QEMU, *TCG, *MACHINE, "-kernel", kernel, "-initrd", directory / "initramfs", "-append")
    plain, slow = (*command, "console=ttyS0"), (*command, f"console=ttyS0 spinner.ms={DELAY_MS}")
    output = directory / "report.json"
    options = ("-F", "200", "--until-console", LOGIN, "--runs", str(RUNS), "-q", "-o", output)
    guestprof("compare", *options, "--with", "plain", "--", *plain, "--with", "slow", "--", *slow)
    report = check_schema("compare", output.read_bytes())
    recordings = [[directory / f"report-{side}-{number}.guestprof" for number in range(1, RUNS + 1)] for side in ("plain", "slow")]
    yield Boots(report, recordings[0], recordings[1], plain)
    shutil.rmtree(directory)


def differing(report: dict[str, Any]) -> dict[str, set[str]]:
    """Phases whose duration differs, or of which functions do by themselves, with these."""
    found = {}
    for phase in report["phases"]:
        functions = {
            row["name"] for row in phase["functions"] if "differs" in (row["self_time"]["verdict"], row["self_share"]["verdict"])
        }
        if functions or phase["duration"]["verdict"] == "differs":
            found[phase["name"]] = functions
    return found


def compared(before: Sequence[Path], after: Sequence[Path]) -> dict[str, Any]:
    more = [word for side, paths in (("--before", before), ("--after", after)) for path in paths[1:] for word in (side, path)]
    report: dict[str, Any] = json.loads(guestprof("compare", before[0], after[0], *more, "-f", "json").stdout)
    return report


def test_a_known_delay_is_found_in_its_function_and_phase(boots: Boots) -> None:
    report = boots.report
    assert [side["name"] for side in report["sides"]] == ["plain", "slow"]
    assert [len(side["durations_ns"]) for side in report["sides"]] == [RUNS, RUNS]
    assert report["is_bounded"]
    assert "spin" in differing(report)["init"]
    init = next(phase for phase in report["phases"] if phase["name"] == "init")
    spin = init["functions"][0]
    assert (spin["name"], spin["module"]) == ("spin", "[spinner]")
    # What the guest itself says of it, by the clock that the comparison goes by, too.
    assert report["method"]["clock"] == "guest"
    with Recording.open(boots.slow[0]) as recording:
        lines = [event.text for event in recording.events() if event.kind == "console"]
    said_ns = int(next(found[1] for found in (re.search(r"spinner: (\d+) ns", line) for line in lines) if found))
    assert said_ns >= DELAY_MS * 1_000_000
    # Of three boots a time may be no more than unsure, after the correction for all others; but outside of its own interval.
    assert "differs" in (spin["self_time"]["verdict"], spin["self_share"]["verdict"])
    assert init["duration"]["low"] > 0
    for found in (spin["self_time"], init["duration"]):
        error_ns = (found["high"] - found["low"]) / 2
        assert abs(found["change"] - said_ns) < 2 * error_ns + 0.1 * said_ns
    # The guest loads the module on both sides, but spins on one alone.
    only = {row["name"]: row for row in report["one_sided"]}
    assert only["spin"]["side"] == 1
    # Nothing else was made longer; one false alarm in twenty comparisons is what the tests promise.
    assert len(differing(report).keys() - {"init"}) <= 1


def test_equal_boots_do_not_differ(boots: Boots, tmp_path: Path) -> None:
    """One false alarm in twenty is what the tests promise, of durations and of functions; so a second comparison may be asked."""

    def more(name: str) -> list[Path]:
        options = ("-F", "200", "--until-console", LOGIN, "--runs", str(RUNS), "-q", "-o", tmp_path / f"{name}.guestprof")
        guestprof("boot", *options, "--", *boots.command)
        return [tmp_path / f"{name}-{number}.guestprof" for number in range(1, RUNS + 1)]

    again = more("a")
    report = compared(boots.plain, again)
    if report["is_different"]:
        report = compared(again, more("b"))
    assert not report["is_different"], report["result"]
    assert report["result"][-1].startswith("no significant difference: ")


def test_examples_that_ask_a_recording(boots: Boots, tmp_path: Path) -> None:
    costs = run_example("module_costs.py", boots.slow[0], "200", cwd=tmp_path).splitlines()
    assert [line.split(":")[0] for line in costs] == ["spinner"]
    assert run_example("module_costs.py", boots.plain[0], "200", cwd=tmp_path) == "no module's start took 200 ms or more\n"
    table = run_example("initcalls.py", boots.slow[0], cwd=tmp_path).splitlines()
    assert any("acpi_init" in line for line in table)
    assert table.index(next(line for line in table if "spinner_init  [spinner]" in line)) > 0


def test_two_kernels(guest_kernel: Callable[[str], Path], guest_initramfs: Path, tmp_path: Path) -> None:
    kernels = guest_kernel("bookworm"), guest_kernel("trixie")
    text = run_example("two_kernels.sh", *kernels, guest_initramfs, *TCG, cwd=tmp_path, RUNS="1", UNTIL="rest_init", QEMU=QEMU)
    assert re.search(r"^A +old: Linux 6\.1\..*\nB +new: Linux 6\.12\.", text, re.MULTILINE)
    assert "start_kernel" in text
    assert "a single boot does not tell how much boots vary" in text


@pytest.fixture
def vmlinux(guest_kernel: Callable[[str], Path], tmp_path: Path) -> Path:
    """Debian's 6.1, unpacked: where supervisor code is emulated under KVM, unpacking itself takes a kernel minutes."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        skip_loudly("/dev/kvm is not there or not ours: KVM is not tested")
    try:
        return unpack_kernel(guest_kernel("bookworm"), tmp_path / "vmlinux")
    except MissingDependencyError as error:
        skip_loudly(str(error))
        raise


def test_kvm_against_tcg(vmlinux: Path, tmp_path: Path) -> None:
    """From the machine's first instruction to the console's line "Memory:".

    The machines that run these tests emulate supervisor code under KVM, slowly and not completely: no Linux gets much farther.
    """
    words = "earlyprintk=ttyS0 console=ttyS0"
    machine = ("-enable-kvm", "-cpu", "qemu64", *MACHINE, "-m", "128", "-kernel", vmlinux, "-append", words)
    run_example("kvm_against_tcg.sh", *machine, cwd=tmp_path, RUNS="1", UNTIL="Memory:", HZ="20", QEMU=QEMU)
    assert (tmp_path / "accelerators.html").read_bytes().startswith(b"<!DOCTYPE html>")
    report = compared([tmp_path / "accelerators-kvm-1.guestprof"], [tmp_path / "accelerators-tcg-1.guestprof"])
    metas = [side["recordings"][0]["meta"] for side in report["sides"]]
    # As QEMU says itself (QMP), and not as was asked for.
    assert [meta["accelerator"] for meta in metas] == ["kvm", "tcg"]
    assert report["is_bounded"]
    assert [phase["name"] for phase in report["phases"]][-2:] == ["kernel-entry", "start_kernel"]
    assert report["duration"]["before"] > report["duration"]["after"] > 0
    for name in ("kvm", "tcg"):
        path = tmp_path / f"accelerators-{name}-1.guestprof"
        of_side = report_of(path)
        assert of_side["meta"]["kernel_release"].startswith("6.1.")
        assert of_side["quality"]["complete_share"] >= 0.99
        totals = {row["name"]: row["total_share"] for row in of_side["functions"]}
        assert totals["start_kernel"] > 0.02
        with Recording.open(path) as recording:
            assert "kernel-found" in {event.kind for event in recording.events()}


def test_a_guest_without_linux_under_both_accelerators_to_its_end(tmp_path: Path) -> None:
    """Known call paths in known shares, from the machine's first instruction to the last line that the guest prints."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        skip_loudly("/dev/kvm is not there or not ours: KVM is not tested")
    try:
        kernel = build(X86_64_RING3, tmp_path / "bare.elf", rounds=30_000)
    except MissingDependencyError as error:
        skip_loudly(str(error))
    output = tmp_path / "bare.json"
    options = ("-F", "400", "-d", "60", "--until-console", "done", "--mark", "work=ready", "--runs", "1", "-q", "-o", output)
    machine = (QEMU, "-cpu", "qemu64", *MACHINE, "-kernel", kernel)
    guestprof("compare", *options, "--elf", kernel, "--accel", "kvm", "--accel", "tcg", "--", *machine)
    report = check_schema("compare", output.read_bytes())
    assert [side["recordings"][0]["meta"]["accelerator"] for side in report["sides"]] == ["kvm", "tcg"]
    assert report["is_bounded"]
    assert report["phases"][-1]["name"] == "work"
    functions = {row["name"]: row for row in report["phases"][-1]["functions"]}
    assert functions.keys() >= {name for path in PATHS.values() for name in path}
    for side in (0, 1):
        samples = {name: functions[name]["samples"][side] for name in SHARES}
        whole = sum(samples.values())
        assert whole > 100
        for name, share in SHARES.items():
            assert abs(samples[name] / whole - share) < 4.5 * math.sqrt(share * (1 - share) / whole), samples
