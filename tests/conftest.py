"""Fixtures that several test directories share: real guests, booted from stock kernels fetched as packages."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from guestprof.debian import fetch_kernel
from guestprof.initramfs import WORKLOAD_MARK, build_initramfs, find_busybox
from recording.errors import MissingDependencyError
from tests.qemu.ahead import GuestsAhead
from tests.qemu.guests import PC, Guest, GuestCrashedError, GuestOptions, Machine

KERNELS = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "7.2": "sid"}
"""The test matrix: kernel generation and the Debian suite that ships it (sid's moves on)."""

ALL_KERNELS = bool(os.environ.get("GUESTPROF_ALL_KERNELS"))
"""Whether ``generations`` leaves none out: for a change of what is read out of kernels' memory, not for every run."""

BOOT_ATTEMPTS = 4
"""Some stock kernels (6.12, 7.2 with two vCPUs) now and then panic at boot under TCG, with nobody attached: code that one vCPU
patches while the other runs it."""


class StartGuest(Protocol):
    """Starts a guest and waits for a console mark; the guest ends with the test (or module) at the latest."""

    def __call__(
        self,
        suite: str = "bookworm",
        vcpus: int = 1,
        *,
        append: str = "",
        machine: Machine = PC,
        cpu: str = "",
        until: str | None = WORKLOAD_MARK,
        stub: bool = True,
        reboots: bool = False,
        extra: tuple[str, ...] = (),
    ) -> Guest: ...


def skip_loudly(reason: str) -> None:
    """Skip loudly: pytest's closing lines name the reason, and a warning stands beside them."""
    warnings.warn(f"no real guest: {reason}", stacklevel=2)
    pytest.skip(reason)


def generations(*wanted: str) -> dict[str, str]:
    """Those of KERNELS that a test is content with; all of them where $GUESTPROF_ALL_KERNELS is set."""
    return {kernel: suite for kernel, suite in KERNELS.items() if ALL_KERNELS or kernel in wanted}


@pytest.fixture(scope="session")
def guest_kernel() -> Callable[..., Path]:
    """The newest stock kernel image of a Debian suite (and architecture), from the user's cache or fetched."""

    def find(suite: str, architecture: str = PC.name) -> Path:
        try:
            return fetch_kernel(suite, architecture)
        except MissingDependencyError as error:
            skip_loudly(str(error))
            raise

    return find


@pytest.fixture(scope="session")
def initramfs_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Machine], Path]:
    """The demo's initramfs for a machine."""
    made: dict[str, Path] = {}

    def find(machine: Machine) -> Path:
        architecture = machine.name
        if architecture not in made:
            try:
                data = build_initramfs(find_busybox(architecture, suite=machine.programs))
            except MissingDependencyError as error:
                skip_loudly(str(error))
                raise
            made[architecture] = tmp_path_factory.mktemp("initramfs") / f"{architecture}.gz"
            made[architecture].write_bytes(data)
        return made[architecture]

    return find


@pytest.fixture(scope="session")
def guest_initramfs(initramfs_of: Callable[[Machine], Path]) -> Path:
    """The demo's initramfs."""
    return initramfs_of(PC)


def _starter(stack: ExitStack, kernel: Callable[..., Path], initramfs_of: Callable[[Machine], Path]) -> StartGuest:
    def start(
        suite: str = "bookworm",
        vcpus: int = 1,
        *,
        append: str = "",
        machine: Machine = PC,
        cpu: str = "",
        until: str | None = WORKLOAD_MARK,
        stub: bool = True,
        reboots: bool = False,
        extra: tuple[str, ...] = (),
    ) -> Guest:
        if shutil.which(machine.qemu) is None:
            skip_loudly(f"{machine.qemu} is not installed (Debian: {machine.package})")
        options = GuestOptions(
            kernel(suite, machine.name),
            initramfs_of(machine),
            vcpus=vcpus,
            append=append,
            cpu=cpu,
            machine=machine,
            stub=stub,
            reboots=reboots,
            extra=extra,
        )
        for attempt in range(1, BOOT_ATTEMPTS + 1):
            guest = stack.enter_context(Guest(options))
            try:
                if until is not None:
                    guest.wait_for(until)
            except GuestCrashedError as error:
                guest.close()
                if attempt == BOOT_ATTEMPTS:
                    raise
                warnings.warn(f"booting {suite}'s kernel again: {str(error)[:200]}", stacklevel=2)
            else:
                return guest
        raise AssertionError

    return start


@pytest.fixture
def start_guest(guest_kernel: Callable[..., Path], initramfs_of: Callable[[Machine], Path]) -> Iterator[StartGuest]:
    """Starts guests that end with the test."""
    with ExitStack() as stack:
        yield _starter(stack, guest_kernel, initramfs_of)


@pytest.fixture(scope="module")
def start_shared_guest(guest_kernel: Callable[..., Path], initramfs_of: Callable[[Machine], Path]) -> Iterator[StartGuest]:
    """Starts guests that end with the module: its tests come and go while one guest runs on."""
    with ExitStack() as stack:
        yield _starter(stack, guest_kernel, initramfs_of)


def params_of(request: pytest.FixtureRequest, name: str) -> list[Any]:
    """Of the tests of a module that will run, in their order: the values of a parameter."""
    own = (item for item in request.session.items if isinstance(item, pytest.Function) and item.module is request.module)
    return [item.callspec.params[name] for item in own if hasattr(item, "callspec") and name in item.callspec.params]


@pytest.fixture(scope="module")
def matrix_ahead(
    request: pytest.FixtureRequest, guest_kernel: Callable[..., Path], initramfs_of: Callable[[Machine], Path]
) -> Iterator[GuestsAhead[tuple[str, int]]]:
    """Boots the guests of ``matrix_guest``."""
    with ExitStack() as stack:
        start = _starter(stack, guest_kernel, initramfs_of)
        with GuestsAhead(params_of(request, "matrix_guest"), lambda which: start(*which)) as ahead:
            yield ahead


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((suite, vcpus), id=f"{kernel}-{vcpus}cpu")
        for vcpus in (1, 2)
        for kernel, suite in (KERNELS if vcpus == 2 else generations("5.10", "7.2")).items()
    ],
)
def matrix_guest(request: pytest.FixtureRequest, matrix_ahead: GuestsAhead[tuple[str, int]]) -> Guest:
    """A guest at work, of each kernel with 2 vCPUs and of some with 1; a module's tests share it, one guest after the other."""
    suite, vcpus = request.param
    return matrix_ahead.take((suite, vcpus))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bless", action="store_true", help="write the golden files of tests/golden anew instead of comparing")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, bytes], None]:
    """Compares output with a file of tests/golden, byte by byte; with --bless it becomes that file."""
    directory = Path(__file__).parent / "golden"

    def check(name: str, output: bytes) -> None:
        path = directory / name
        if request.config.getoption("--bless"):
            path.write_bytes(output)
        assert path.is_file(), f"tests/golden/{name} is missing; look at the output and write it with pytest --bless"
        assert output.decode() == path.read_bytes().decode()

    return check
