"""Stock kernels fetched by a scripted apt: which mirror, which package, which keyring, and what is said when there is none."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from guestprof.apt import Mirror, find_mirror
from guestprof.debian import KEYRINGS, fetch_kernel, fetch_package, host_kernel, stock_kernel
from recording.errors import MissingDependencyError

DEBIAN = "Packages|http://mirror/debian/|bookworm|main|Debian|bookworm"


class FakeApt:
    """apt and dpkg of a machine: its targets, and the suites of its mirror with their packages (name, version, size, files).

    unverified: suites that the machine's own keyring cannot verify.
    """

    def __init__(
        self,
        suites: dict[str, list[tuple[str, str, int, list[str]]]],
        targets: str = DEBIAN,
        unverified: frozenset[str] = frozenset(),
    ) -> None:
        self.suites = suites
        self.targets = targets
        self.unverified = unverified
        self.commands: list[list[str]] = []
        self.sources: list[str] = []

    def __call__(self, command: Sequence[str], directory: Path) -> subprocess.CompletedProcess[str]:
        self.commands.append(list(command))
        status, out, err = self._answer(list(command), directory)
        return subprocess.CompletedProcess(list(command), status, out, err)

    def _answer(self, command: list[str], directory: Path) -> tuple[int, str, str]:
        if command[0] == "dpkg":
            older = int(command[2].split("-")[0]) < int(command[4].split("-")[0])
            return 0 if older else 1, "", ""
        if command[0] == "dpkg-deb":
            for line in Path(command[2]).read_text("utf-8").splitlines():
                target = Path(command[3]) / line
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(line, "utf-8")
            return 0, "", ""
        if command[1] == "indextargets":
            return 0, self.targets + "\n", ""
        return self._in_suite(command, directory)

    def _in_suite(self, command: list[str], directory: Path) -> tuple[int, str, str]:
        source = (Path(command[2]).parent / "sources.list").read_text("utf-8")
        suite = source.split()[-2]
        packages = self.suites.get(suite, [])
        if command[-1] == "update":
            self.sources.append(source.strip())
            if suite not in self.suites:
                return 100, "Reading package lists...\n", "E: The repository 'mirror' does not have a Release file.\n"
            if suite in self.unverified and f"signed-by={KEYRINGS['Debian']}]" in source:
                return 100, "", f"W: GPG error: {suite}: NO_PUBKEY 6ED0E7B82643E131\nE: The repository is not signed.\n"
            return 0, "", ""
        if command[-1] == "pkgnames":
            return 0, "".join(f"{package[0]}\n" for package in packages), ""
        if "show" in command:
            wanted = command[command.index("show") + 1 :]
            shown = [f"Package: {p[0]}\nVersion: {p[1]}\nInstalled-Size: {p[2]}\n" for p in packages if p[0] in wanted]
            return 0, "\n".join(shown), ""
        name, version = command[-1].split("=")
        (package,) = (p for p in packages if p[:2] == (name, version))
        if not package[3]:
            return 100, "", "E: Failed to fetch it  404  Not Found\n"
        (directory / f"{name}.deb").write_text("\n".join(package[3]), "utf-8")
        return 0, "", ""


def cloud(version: int, files: tuple[str, ...] = ("boot/vmlinuz-6.1.0",)) -> tuple[str, str, int, list[str]]:
    return (f"linux-image-6.1.0-{version}-cloud-amd64", f"{version}-1", 100, list(files))


def test_the_newest_kernel_is_unpacked_and_kept(tmp_path: Path) -> None:
    apt = FakeApt(
        {"bookworm": [cloud(9), cloud(10), ("linux-image-6.1.0-11-cloud-amd64-dbg", "11-1", 9, []), ("bash", "12-1", 9, [])]}
    )
    image = fetch_kernel("bookworm", cache_dir=tmp_path, run=apt)
    assert image == tmp_path / "linux-image-6.1.0-10-cloud-amd64_10-1_amd64" / "boot/vmlinuz-6.1.0"
    assert apt.sources == [f"deb [arch=amd64 signed-by={KEYRINGS['Debian']}] http://mirror/debian bookworm main"]
    asked = len(apt.commands)
    assert fetch_kernel("bookworm", cache_dir=tmp_path, run=apt) == image
    assert len(apt.commands) == asked
    assert not list(tmp_path.glob(".fetch-*"))


def test_a_version_that_the_mirror_does_not_have_yet_is_left_out(tmp_path: Path) -> None:
    apt = FakeApt({"bookworm": [cloud(9), cloud(10, ()), cloud(8)]})
    told: list[str] = []
    image = fetch_kernel("bookworm", cache_dir=tmp_path, run=apt, tell=told.append)
    assert image == tmp_path / "linux-image-6.1.0-9-cloud-amd64_9-1_amd64" / "boot/vmlinuz-6.1.0"
    assert any("404" in line for line in told)


def test_every_apt_call_works_in_the_private_root(tmp_path: Path) -> None:
    apt = FakeApt({"bookworm": [cloud(9)]})
    fetch_kernel("bookworm", cache_dir=tmp_path, run=apt)
    calls = [command for command in apt.commands if command[0] in {"apt-get", "apt-cache"} and command[1] != "indextargets"]
    assert len(calls) == 4
    assert all(command[1] == "-c" and command[2].startswith(f"{tmp_path}/.fetch-") for command in calls)
    assert not any(word in command for command in apt.commands for word in ("install", "--install", "-i", "upgrade"))


def test_of_one_version_the_package_with_the_image_is_taken(tmp_path: Path) -> None:
    image = "usr/lib/modules/7.2.13/vmlinuz.unsigned"
    packages = [
        ("linux-binary-unsigned-7.2.13-cloud-amd64", "7-1", 13711, [image]),
        ("linux-image-7.2.13-cloud-amd64", "7-1", 15, ["usr/share/doc/x"]),
    ]
    assert fetch_kernel("sid", cache_dir=tmp_path, run=FakeApt({"sid": packages})).relative_to(tmp_path) == Path(
        "linux-binary-unsigned-7.2.13-cloud-amd64_7-1_amd64", image
    )


def test_architectures_without_a_cloud_kernel_have_one_of_their_own(tmp_path: Path) -> None:
    image = "boot/vmlinux-6.12.9"
    packages = [
        ("linux-image-6.12.9-riscv64", "9-1", 100, [image]),
        ("linux-image-6.12.10-rt-riscv64", "10-1", 100, ["boot/vmlinux-6.12.10"]),
    ]
    found = fetch_kernel("trixie", "riscv64", cache_dir=tmp_path, run=FakeApt({"trixie": packages}))
    assert found == tmp_path / "linux-image-6.12.9-riscv64_9-1_riscv64" / image


def test_a_newer_key_is_taken_from_a_suite_that_verifies(tmp_path: Path) -> None:
    keyring = ("debian-archive-keyring", "2025-1", 10, [str(KEYRINGS["Debian"]).lstrip("/")])
    suites = {"sid": [cloud(9)], "testing": [keyring], "stable": [keyring]}
    apt = FakeApt(suites, unverified=frozenset({"sid", "testing"}))
    told: list[str] = []
    assert fetch_kernel("sid", cache_dir=tmp_path, run=apt, tell=told.append).name == "vmlinuz-6.1.0"
    assert [source.split()[-2] for source in apt.sources] == ["sid", "testing", "stable", "sid"]
    assert re.search(rf"signed-by={tmp_path}/\.fetch-[^/]+/keyring-stable/tree{KEYRINGS['Debian']}\]", apt.sources[-1])
    assert told == [
        "asking the Debian archive for sid (amd64)",
        "taking the archive keyring 2025-1 from stable",
        "fetching linux-image-6.1.0-9-cloud-amd64 9-1",
    ]


def test_a_suite_that_nothing_verifies_is_refused(tmp_path: Path) -> None:
    apt = FakeApt({"sid": [cloud(9)]}, unverified=frozenset({"sid"}))
    with pytest.raises(
        MissingDependencyError, match=r"suite sid \(amd64\) could not be .*verified \(W: GPG error: sid: NO_PUBKEY .*keyring"
    ):
        fetch_kernel("sid", cache_dir=tmp_path, run=apt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("suites", "suite", "message"),
    [
        ({}, "nosuch", r"suite nosuch \(amd64\) could not be fetched .*does not have a Release file.*; check the connection"),
        ({"bookworm": []}, "bookworm", r"suite bookworm has no package named like .*; name another suite or flavour"),
        (
            {"bookworm": [cloud(9, ("boot/config-6.1.0",))]},
            "bookworm",
            r"linux-image-6.1.0-9-cloud-amd64_9-1_amd64 holds no kernel image",
        ),
    ],
)
def test_errors_say_what_to_do(
    tmp_path: Path, suites: dict[str, list[tuple[str, str, int, list[str]]]], suite: str, message: str
) -> None:
    with pytest.raises(MissingDependencyError, match=message):
        fetch_kernel(suite, cache_dir=tmp_path, run=FakeApt(suites))


UBUNTU = "Packages|http://mirror/ubuntu/|noble|main|Ubuntu|noble"


def test_on_ubuntu_its_own_suite_is_fetched_and_no_other(tmp_path: Path) -> None:
    names = ("linux-image-6.8.0-31-generic", "linux-image-6.8.0-31-lowlatency")
    apt = FakeApt({"noble": [(name, "6-1", 9, [f"boot/{name}/../vmlinuz-{name}"]) for name in names]}, UBUNTU)
    assert fetch_kernel("", cache_dir=tmp_path, run=apt).name == "vmlinuz-linux-image-6.8.0-31-generic"
    with pytest.raises(
        MissingDependencyError, match="mirror is Ubuntu's, not Debian's, so sid cannot be fetched here; use its own suite noble"
    ):
        fetch_kernel("sid", cache_dir=tmp_path, run=apt)


@pytest.mark.parametrize(
    ("targets", "os_release", "expected"),
    [
        (
            """Packages|http://m/debian-security/|bookworm-security|main|Debian|bookworm-security
Packages|http://m/debian/|bookworm-updates|main|Debian|bookworm-updates
Translations|http://m/debian/|bookworm|main|Debian|bookworm
Packages|http://elsewhere/node|nodistro|main|. nodistro|nodistro
Packages|http://mirror/debian/|bookworm|main|Debian|bookworm""",
            'ID=debian\nVERSION_CODENAME="bookworm"\n',
            Mirror("http://mirror/debian", "Debian", "bookworm"),
        ),
        (
            "Packages|mirror+file:/etc/apt/mirrors/debian.list|stable|main|$(ORIGIN)|$(CODENAME)",
            "ID=debian\nVERSION_CODENAME=trixie\n",
            Mirror("mirror+file:/etc/apt/mirrors/debian.list", "Debian", "trixie"),
        ),
        (UBUNTU, "ID=ubuntu\nVERSION_CODENAME=noble\n", Mirror("http://mirror/ubuntu", "Ubuntu", "noble")),
    ],
)
def test_the_mirror_is_the_machines_main_archive(tmp_path: Path, targets: str, os_release: str, expected: Mirror) -> None:
    (tmp_path / "os-release").write_text(os_release, "utf-8")
    assert find_mirror(FakeApt({}, targets), tmp_path / "os-release") == expected


def test_apt_without_an_archive_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="apt on this machine has no archive"):
        find_mirror(FakeApt({}, ""), tmp_path / "missing")


@pytest.mark.parametrize("name", ["", "..", "../outside", "gone"])
def test_a_damaged_cache_note_is_not_followed(tmp_path: Path, name: str) -> None:
    cache = tmp_path / "cache"
    apt = FakeApt({"bookworm": [cloud(9)]})
    package = fetch_package("bookworm", "amd64", "linux-.*", cache, run=apt)
    (note,) = (path for path in cache.iterdir() if path.is_file())
    note.write_text(name, "utf-8")
    (tmp_path / "outside").mkdir()
    assert fetch_package("bookworm", "amd64", "linux-.*", cache, run=apt) == package
    assert note.read_text("utf-8") == f"{package.name}\n"


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MissingDependencyError, match=r"cannot keep packages in .*set XDG_CACHE_HOME"):
        fetch_kernel("bookworm", cache_dir=tmp_path / "file", run=FakeApt({"bookworm": [cloud(9)]}))


def no_apt(command: Sequence[str], directory: Path) -> subprocess.CompletedProcess[str]:
    raise MissingDependencyError(f"{command[0]} is not installed")


def test_without_apt_the_hosts_newest_kernel_is_taken(tmp_path: Path) -> None:
    for name in ("vmlinuz-6.9.1", "vmlinuz-6.10.0", "vmlinuz-0-rescue-7", "config-6.11.0"):
        (tmp_path / name).touch()
    told: list[str] = []
    assert stock_kernel(tmp_path / "cache", tmp_path, run=no_apt, tell=told.append) == tmp_path / "vmlinuz-6.10.0"
    assert told == [f"apt-get is not installed; taking {tmp_path}/vmlinuz-6.10.0 instead"]


def test_without_apt_and_kernel_both_reasons_are_told(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"^no kernel to boot: apt-get is not installed; there is no kernel image in"):
        stock_kernel(tmp_path / "cache", tmp_path, run=no_apt)


def test_a_kernel_that_may_not_be_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vmlinuz-6.1.1", "vmlinuz-6.1.2"):
        (tmp_path / name).touch()
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "vmlinuz-6.1.2")
    assert host_kernel(tmp_path).name == "vmlinuz-6.1.1"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(MissingDependencyError, match=r"vmlinuz-6.1.2 cannot be read .*chmod \+r"):
        host_kernel(tmp_path)
