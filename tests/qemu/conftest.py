"""Fixtures of real guests with a Debian userspace."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from recording.errors import MissingDependencyError
from tests.conftest import skip_loudly
from tests.guests.build import USER_TRUTH
from tests.qemu.command import guestprof
from tests.qemu.debian_guest import TASK_TRUTH, DebianOptions, qemu_command
from tests.qemu.guests import QEMU
from tests.qemu.rootfs import PROGRAMS_DIRECTORY, root_image
from tests.qemu.truth import REPORT_END

TRUTH_REPORT = 5
"""The report of task-truth at which the recording of the truth guest ends: 25 seconds after it began."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What suffers most from other load comes last, when nothing runs beside it any more (tools/test.sh)."""
    items.sort(key=lambda item: ("test_compare.py", "test_architectures.py").count(item.path.name))


@pytest.fixture(scope="session")
def debian_image() -> Path:
    """The Debian root file system as a qcow2 image."""
    for program, package in ((QEMU, "qemu-system-x86"), ("qemu-img", "qemu-utils"), ("mke2fs", "e2fsprogs")):
        if shutil.which(program) is None:
            skip_loudly(f"{program} is not installed (Debian: {package})")
    try:
        return root_image()
    except MissingDependencyError as error:
        skip_loudly(str(error))
        raise


@dataclass(frozen=True, slots=True)
class TruthRecording:
    """A recording of the truth guest from its first instruction to the end of a report, and its console."""

    path: Path
    console: str


@pytest.fixture(scope="session")
def truth_recording(
    guest_kernel: Callable[[str], Path], debian_image: Path, tmp_path_factory: pytest.TempPathFactory
) -> TruthRecording:
    """Two vCPUs that all programs with known call paths and all tasks of task-truth share."""
    directory = tmp_path_factory.mktemp("truth")
    path, console = directory / "truth.guestprof", directory / "console"
    options = DebianOptions(
        guest_kernel("bookworm"),
        "bookworm",
        debian_image,
        vcpus=2,
        program=TASK_TRUTH,
        arguments=tuple(f"/{PROGRAMS_DIRECTORY}/{program.name}" for program in USER_TRUTH),
    )
    command = qemu_command(options, directory, console)
    end = REPORT_END.format(TRUTH_REPORT)
    guestprof("boot", "-F", "200", "-d", "120", "--until-console", end, "-o", path, "-q", "--", *command)
    text = console.read_text("utf-8", "replace")
    assert end in text, f"the guest did not get so far:\n{text[-3000:]}"
    return TruthRecording(path, text)
