"""Units by control groups and by what systemd says on the console."""

from __future__ import annotations

import pytest

from recording.model import Event
from recording.seen import Seen, SeenGroup
from recording.units import Unit, unit_of, units_of
from tests.builders.recordings import MS


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/system.slice/ssh.service", ("ssh.service", "system.slice")),
        ("/init.scope", ("init.scope", None)),
        ("/system.slice/system-getty.slice/getty@tty1.service", ("getty@tty1.service", "system-getty.slice")),
        ("/user.slice/user-0.slice/user@0.service/app.slice/x.service", ("x.service", "app.slice")),
        ("/system.slice/docker.service/a/b", ("docker.service", "system.slice")),
        ("/system.slice", ("system.slice", None)),
        ("/", None),
        ("/mine/group", None),
    ],
)
def test_units_of_paths(path: str, unit: tuple[str, str | None] | None) -> None:
    assert unit_of(path) == unit


def group(path: str, first_ms: int, last_ms: int, weight_ms: int) -> SeenGroup:
    return SeenGroup(path, Seen(first_ms * MS, (first_ms - 5) * MS, last_ms * MS, weight_ms // 5, weight_ms * MS))


def said(*lines: tuple[int, str]) -> list[Event]:
    return [Event(at_ms * MS, "console", text) for at_ms, text in lines]


def by_name(units: list[Unit]) -> dict[str, Unit]:
    return {unit.name: unit for unit in units}


def test_by_groups_alone_they_stand_by_what_they_used() -> None:
    units = units_of(
        [
            group("/system.slice/a.service", 10, 50, 20),
            group("/system.slice/b.service", 20, 90, 60),
            group("/system.slice/b.service/deep", 30, 95, 10),
            group("/", 0, 100, 500),
        ],
        [],
    )
    assert [(unit.name, unit.slice, unit.start_ns) for unit in units] == [
        ("b.service", "system.slice", None),
        ("a.service", "system.slice", None),
    ]
    assert units[0].seen == Seen(20 * MS, 15 * MS, 95 * MS, 14, 70 * MS)


def test_starts_by_the_console() -> None:
    units = units_of(
        [group("/system.slice/systemd-tmpfiles-setup.service", 150, 400, 100), group("/system.slice/d.service", 200, 900, 700)],
        said(
            (100, "[    3.100000] systemd[1]: Starting systemd-journald.service - Journal Service..."),
            (101, "         Starting \x1b[0;1;39msystemd-journald.service\x1b[0m - Journal Service...\r"),
            (130, "         Starting \x1b[0;1;39msystemd-tmpfiles-…te System Files and Directories..."),
            (180, "[\x1b[0;32m  OK  \x1b[0m] Started \x1b[0;1;39msystemd-journald.service\x1b[0m - Journal Service."),
            (430, "[\x1b[0;32m  OK  \x1b[0m] Finished \x1b[0;1;39msystemd-tmpfiles-…eate System Files and Directories."),
            (440, "         Mounting tmp.mount - Temporary Directory /tmp..."),
            (445, "[\x1b[0;32m  OK  \x1b[0m] Mounted tmp.mount - Temporary Directory /tmp."),
            (450, "         Starting broken.service - It fails..."),
            (470, "[\x1b[0;1;31mFAILED\x1b[0m] Failed to start broken.service - It fails."),
            (480, "[  OK  ] Reached target multi-user.target - Multi-User System."),
            (490, "         Starting OpenBSD Secure Shell server..."),
            (495, "         Starting other-…te thing..."),
            (499, "a program: Starting x.service"),
        ),
    )
    assert [(unit.name, unit.start_ns) for unit in units][:4] == [
        ("systemd-tmpfiles-setup.service", 300 * MS),
        ("systemd-journald.service", 80 * MS),
        ("broken.service", 20 * MS),
        ("tmp.mount", 5 * MS),
    ]
    found = by_name(units)
    assert found["broken.service"].failed
    assert not found["tmp.mount"].failed
    assert found["d.service"].seen is not None
    assert (found["multi-user.target"].starting_ns, found["multi-user.target"].started_ns) == (None, 480 * MS)
    assert set(found) == {
        *("systemd-tmpfiles-setup.service", "systemd-journald.service", "broken.service", "tmp.mount"),
        *("d.service", "multi-user.target"),
    }


def test_a_cut_name_that_may_be_several_is_none() -> None:
    units = units_of(
        [group("/system.slice/systemd-a.service", 1, 2, 5), group("/system.slice/systemd-b.service", 1, 2, 5)],
        said((5, "[  OK  ] Started systemd-….service - Something.")),
    )
    assert all(unit.started_ns is None for unit in units)
