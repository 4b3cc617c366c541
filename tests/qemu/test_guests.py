"""The guests that the other real-QEMU tests stand on: they boot, work, and obey their switches."""

from __future__ import annotations

import pytest

from guestprof.initramfs import USERSPACE_MARK, WORKLOAD_MARK
from tests.conftest import StartGuest
from tests.qemu.guests import Guest

pytestmark = pytest.mark.qemu


def test_every_kernel_boots_to_the_workload(matrix_guest: Guest) -> None:
    release = matrix_guest.console_text().split(USERSPACE_MARK)[1].split()[0]
    assert release in str(matrix_guest.options.kernel.parent.parent) or release in matrix_guest.options.kernel.name
    assert matrix_guest.status() == "running"
    assert len(matrix_guest.execute("query-cpus-fast")) == matrix_guest.options.vcpus  # type: ignore[arg-type]


def test_a_guest_powers_itself_off(start_guest: StartGuest) -> None:
    guest = start_guest(append="guestprof.workload=none guestprof.poweroff=1", until=USERSPACE_MARK)
    assert guest.wait_for_end() == 0
    assert WORKLOAD_MARK not in guest.console_text()


def test_a_guest_reboots_itself(start_guest: StartGuest) -> None:
    guest = start_guest(append="guestprof.workload=idle guestprof.reboot=1", reboots=True)
    guest.wait_for(WORKLOAD_MARK, count=2)
    assert guest.status() == "running"
