"""tools/setup.sh on machines made of a few programs: what it installs, and what it says where it may not or cannot."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("sh", "dirname", "grep", "env", "cat", "cmp", "ldd")


class Machine:
    """A copy of the script, and a $PATH with nothing but some tools and the programs that a test puts there."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.log = directory / "log"
        self.log.touch()
        for name in TOOLS:
            found = shutil.which(name)
            assert found is not None, f"{name} is not installed"
            (self.bin / name).symlink_to(found)
        self.script = directory / "tools" / "setup.sh"
        self.script.parent.mkdir()
        shutil.copy(ROOT / "tools/setup.sh", self.script)

    def program(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{body}\n", "utf-8")
        path.chmod(0o755)

    def run(self, purpose: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.bin / "sh"), str(self.script), purpose],
            env={"PATH": str(self.bin)},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def with_apt(machine: Machine, user: int, known: str) -> None:
    """apt that logs what it is told to do; ``known`` is the shell pattern of the packages in its lists before an update."""
    machine.program("id", f"echo {user}")
    machine.program("apt-get", f'echo "apt-get $*" >> {machine.log}; [ "$2" != update ] || : > {machine.log}.updated')
    machine.program(
        "apt-cache",
        f"""[ -e {machine.log}.updated ] && echo "  Candidate: 1" && exit
case $2 in {known}) echo "  Candidate: 1" ;; *) echo "  Candidate: (none)" ;; esac""",
    )


def test_without_apt_it_lists_what_is_needed(machine: Machine) -> None:
    done = machine.run("demo")
    assert done.returncode == 1
    assert done.stderr == (
        "guestprof: this is neither Debian nor Ubuntu; install with this distribution's package manager:\n"
        "    - Python 3.11 or newer with its venv module\n"
        "    - QEMU for x86-64 (qemu-system-x86_64)\n"
        "    - busybox, statically linked\n"
        "guestprof: then run make demo again\n"
    )


def test_neither_root_nor_sudo_is_told_the_command(machine: Machine) -> None:
    with_apt(machine, 1000, "*")
    machine.program("gpgv", "")
    done = machine.run("demo")
    assert done.returncode == 1
    assert (
        "neither root nor is there sudo; as root: apt-get install python3 python3-venv qemu-system-x86 busybox-static"
        in done.stderr
    )
    assert machine.log.read_text("utf-8") == ""


def test_known_packages_are_installed_without_an_update(machine: Machine) -> None:
    with_apt(machine, 0, "*")
    machine.program("gpgv", "")
    done = machine.run("lint")
    assert machine.log.read_text("utf-8") == ("apt-get -qq install --yes --no-install-recommends python3 python3-venv shellcheck\n")
    assert done.returncode == 1
    assert "this release's packages do not suffice; still needed:\n    - Python 3.11 or newer with its venv module\n" in done.stderr


def test_unknown_packages_need_fresh_lists(machine: Machine) -> None:
    with_apt(machine, 0, "python3*")
    machine.run("lint")
    assert machine.log.read_text("utf-8").splitlines() == [
        "apt-get -qq update",
        "apt-get -qq install --yes --no-install-recommends python3 python3-venv shellcheck",
    ]


def test_sudo_is_used_by_others_than_root(machine: Machine) -> None:
    with_apt(machine, 1000, "*")
    machine.program("sudo", f'echo "sudo $*" >> {machine.log}')
    machine.run("lint")
    command = "apt-get -qq install --yes --no-install-recommends python3 python3-venv shellcheck"
    assert machine.log.read_text("utf-8") == f"sudo env DEBIAN_FRONTEND=noninteractive {command}\n"


def test_a_python_that_is_too_old_is_no_python(machine: Machine) -> None:
    machine.program("python3", "exit 1")
    machine.program("shellcheck", "")
    done = machine.run("lint")
    assert done.returncode == 1
    assert "    - Python 3.11 or newer with its venv module\n" in done.stderr


def test_a_usable_machine_gets_its_environment(machine: Machine) -> None:
    root = machine.script.parent.parent
    (root / "pyproject.toml").write_text("[project]\n", "utf-8")
    for name in ("mkdir", "cp", "chmod"):
        (machine.bin / name).symlink_to(str(shutil.which(name)))
    machine.program("shellcheck", "")
    fake = 'echo "#!/bin/sh" > .venv/bin/python; echo "echo \\$* >> log" >> .venv/bin/python; chmod +x .venv/bin/python'
    machine.program("python3", f'[ "$2" != venv ] || {{ mkdir -p .venv/bin; {fake}; }}')
    assert machine.run("lint").returncode == 0
    assert machine.run("lint").returncode == 0
    lines = [line for line in machine.log.read_text("utf-8").splitlines() if "pip" in line]
    assert lines == ["-m pip --disable-pip-version-check install --quiet --editable .[test,lint]"]
