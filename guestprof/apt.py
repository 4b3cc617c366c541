"""The machine's apt settings become a private apt root: an archive's packages, verified, without touching the machine's own apt.

The machine's apt only tells which mirror to ask (sources.list(5), apt-get(8) "indextargets"). apt itself verifies what comes
from there: the signature of ``Release`` by the archive's keyring, then the hashes of the index, then those of the package.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cmp_to_key
from pathlib import Path

from recording.errors import MissingDependencyError

Run = Callable[[Sequence[str], Path], "subprocess.CompletedProcess[str]"]
"""Runs a command in a directory, returns its exit status and both outputs; raises MissingDependencyError if it is not installed."""

_COMMAND_TIMEOUT_S = 900.0
_TARGET_FORMAT = "$(CREATED_BY)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)|$(CODENAME)"
_POCKET = re.compile(r".*[-/](security|updates|backports|backports-sloppy|proposed|proposed-updates|debug)$")

# The hooks that are cleared here would clean up the machine's own package cache.
_APT_CONF = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{root}/state";
Dir::State::status "{root}/status";
Dir::Cache "{root}/cache";
Dir::Log "{root}/log";
APT::Architecture "{architecture}";
#clear APT::Architectures;
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "root";
Acquire::AllowReleaseInfoChange "true";
Acquire::Languages "none";
Acquire::Retries "3";
"""


@dataclass(frozen=True, slots=True)
class Mirror:
    """The package archive that this machine's apt is set up with.

    origin: who signs it ("Debian", "Ubuntu", ...). suite: the one that this machine runs.
    """

    uri: str
    origin: str
    suite: str


@dataclass(frozen=True, slots=True)
class Package:
    """A package of an archive's index. installed_kib: disk space that it says it needs."""

    name: str
    version: str
    installed_kib: int


def run_command(command: Sequence[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a directory, with untranslated messages. Raises MissingDependencyError if it is not installed or hangs."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        return subprocess.run(
            list(command), cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=_COMMAND_TIMEOUT_S
        )
    except FileNotFoundError:
        message = f"{command[0]} is not installed, so no package can be fetched; install it or use a kernel of your own"
        raise MissingDependencyError(message) from None
    except subprocess.TimeoutExpired:
        message = (
            f"{command[0]} did not finish within {_COMMAND_TIMEOUT_S:.0f} s; check this machine's connection to its package mirror"
        )
        raise MissingDependencyError(message) from None


def find_mirror(run: Run = run_command, os_release: Path = Path("/etc/os-release")) -> Mirror:
    """The archive of this machine's own suite. Raises MissingDependencyError where apt is missing or has none."""
    result = run(["apt-get", "indextargets", "--format", _TARGET_FORMAT], Path("/"))
    facts = _read_os_release(os_release)
    machine = facts.get("ID", "").lower()
    codename = facts.get("VERSION_CODENAME", "")
    best: tuple[tuple[bool, bool], Mirror] | None = None
    for line in result.stdout.splitlines():
        fields = line.split("|")
        if len(fields) != 6 or fields[0] != "Packages" or fields[3] != "main" or _POCKET.match(fields[2]):
            continue
        _, uri, release, _, origin, release_codename = fields
        # An archive whose lists were never fetched has no origin or codename yet: apt then prints the fields' names.
        if not origin or origin.startswith("$("):
            origin = machine.capitalize()
        if not release_codename or release_codename.startswith("$("):
            release_codename = codename or release
        rank = (origin.lower() == machine, codename in (release, release_codename))
        if best is None or rank > best[0]:
            best = (rank, Mirror(uri.rstrip("/"), origin, release_codename))
    if best is None:
        message = (
            "apt on this machine has no archive to fetch a kernel from; add one to its sources, or boot a kernel image of your own"
        )
        raise MissingDependencyError(message)
    return best[1]


class PrivateApt:
    """An apt root of one suite and architecture in a directory of its own, which the caller makes and removes.

    keyring: that the suite must be signed by; None for what the machine's own apt trusts.
    """

    def __init__(self, directory: Path, mirror: Mirror, suite: str, architecture: str, keyring: Path | None, run: Run) -> None:
        self._suite = suite
        self._directory = directory
        self._run = run
        for name in ("state/lists/partial", "cache/archives/partial", "log", "download"):
            (directory / name).mkdir(parents=True)
        (directory / "status").touch()
        signed_by = f" signed-by={keyring}" if keyring is not None else ""
        line = f"deb [arch={architecture}{signed_by}] {mirror.uri} {suite} main\n"
        (directory / "sources.list").write_text(line, "utf-8")
        (directory / "apt.conf").write_text(_APT_CONF.format(root=directory, architecture=architecture), "utf-8")

    def update(self) -> subprocess.CompletedProcess[str]:
        """Fetch and verify the suite's index; exit status 0 if all of it is there and signed."""
        return self._apt("apt-get", "--quiet", "--error-on=any", "update")

    def find_newest(self, name_regex: str) -> Package | None:
        """The first of ``find``, None where there is none."""
        return next(iter(self.find(name_regex)), None)

    def find(self, name_regex: str) -> list[Package]:
        """The matching packages, a higher version before a lower one; of several with it the largest, as the others only depend

        on that one.
        """
        names = [name for name in self._apt("apt-cache", "pkgnames").stdout.split() if re.fullmatch(name_regex, name)]
        if not names:
            return []
        packages: list[Package] = []
        for stanza in self._apt("apt-cache", "show", *sorted(names)).stdout.split("\n\n"):
            fields = dict(re.findall(r"^(Package|Version|Installed-Size): (\S+)$", stanza, re.MULTILINE))
            if {"Package", "Version"} <= fields.keys():
                packages.append(Package(fields["Package"], fields["Version"], int(fields.get("Installed-Size", "0"))))
        packages.sort(key=cmp_to_key(self._compare), reverse=True)
        return list({package.version: package for package in reversed(packages)}.values())[::-1]

    def unpack(self, package: Package, tree: Path) -> None:
        """Download a package, verified, and unpack its files into a new directory. Raises MissingDependencyError."""
        result = self._apt("apt-get", "--quiet", "download", f"{package.name}={package.version}")
        files = sorted((self._directory / "download").glob("*.deb"))
        if result.returncode != 0 or len(files) != 1:
            message = f"could not download {package.name} {package.version} of {self._suite}: {reason(result)}; try again later"
            raise MissingDependencyError(message)
        result = self._run(["dpkg-deb", "--extract", str(files[0]), str(tree)], self._directory)
        files[0].unlink()
        if result.returncode != 0:
            message = f"could not unpack {files[0].name}: {reason(result)}; check that the disk of {tree.parent} has room"
            raise MissingDependencyError(message)
        tree.chmod(0o755)

    def _apt(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run([program, "-c", str(self._directory / "apt.conf"), *arguments], self._directory / "download")

    def _compare(self, a: Package, b: Package) -> int:
        if a.version == b.version:
            return a.installed_kib - b.installed_kib
        older = self._run(["dpkg", "--compare-versions", a.version, "lt", b.version], self._directory).returncode == 0
        return -1 if older else 1


def reason(result: subprocess.CompletedProcess[str]) -> str:
    """The first thing that a failed command complains about, on one line."""
    lines = [line.strip() for line in f"{result.stderr}\n{result.stdout}".splitlines() if line.strip()]
    for prefix in ("W: GPG error", "E:", "W:", ""):
        for line in lines:
            if line.startswith(prefix):
                return line[:300].rstrip(".")
    return f"exit status {result.returncode}"


def _read_os_release(path: Path) -> dict[str, str]:
    """os-release(5): NAME=value lines, values perhaps quoted."""
    try:
        text = path.read_text("utf-8")
    except OSError:
        return {}
    return {name: value.strip("\"'") for name, value in re.findall(r"^([A-Z_]+)=(.*)$", text, re.MULTILINE)}
