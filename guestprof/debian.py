"""A suite and a package name become a directory of unpacked files: stock kernels for guests, fetched but never installed.

Packages are kept by version in the user's cache directory, so that a second call asks nobody.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_path

from guestprof.apt import Mirror, PrivateApt, Run, find_mirror, reason, run_command
from recording.errors import MissingDependencyError

Tell = Callable[[str], None]
"""Takes a line of progress."""

KEYRINGS = {
    "Debian": Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    "Ubuntu": Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg"),
}
_FLAVOURS = {
    "armhf": "armmp",
    "i386": "686-pae",
    "mips64el": "5kc-malta",
    "mipsel": "4kc-malta",
    "ppc64el": "powerpc64le",
    "riscv64": "riscv64",
    "s390x": "s390x",
}
"""Debian's kernels for architectures without a cloud kernel."""
_MAX_VERSIONS = 3
_NEWER_KEYRINGS = ("testing", "stable", "oldstable")


def default_cache_dir() -> Path:
    """Where unpacked packages are kept: in the user's cache directory. Delete it to get newer versions."""
    return user_cache_path("guestprof") / "packages"


def fetch_package(
    suite: str,
    architecture: str,
    name_regex: str,
    cache_dir: Path | None = None,
    *,
    run: Run = run_command,
    tell: Tell | None = None,
) -> Path:
    """The directory in which the newest package whose whole name matches was unpacked (``dpkg-deb --extract``).

    suite: codename, or "" for the suite that this machine runs. architecture: Debian's name of it.
    Raises MissingDependencyError with the reason and the remedy.
    """
    cache = cache_dir if cache_dir is not None else default_cache_dir()
    key = hashlib.sha256(f"{suite}|{architecture}|{name_regex}".encode()).hexdigest()[:16]
    note = cache / f"{suite or 'own'}-{architecture}-{key}"
    known = _read_note(note)
    if known is not None:
        return known
    mirror = find_mirror(run)
    suite = suite or mirror.suite
    if mirror.origin != "Debian" and suite != mirror.suite:
        message = (
            f"this machine's package mirror is {mirror.origin}'s, not Debian's, so {suite} cannot be fetched here; "
            f"use its own suite {mirror.suite}, a Debian machine, or a kernel image of your own"
        )
        raise MissingDependencyError(message)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as name:
            scratch = Path(name)
            unpacked = _fetch(mirror, suite, architecture, name_regex, scratch, run, tell or (lambda _line: None))
            (scratch / "note").write_text(unpacked.name + "\n", "utf-8")
            (scratch / "note").replace(note)
    except OSError as error:
        message = f"cannot keep packages in {cache} ({error}); set XDG_CACHE_HOME to a directory that can be written"
        raise MissingDependencyError(message) from error
    return unpacked


def fetch_kernel(
    suite: str,
    architecture: str = "amd64",
    flavour: str | None = None,
    cache_dir: Path | None = None,
    *,
    run: Run = run_command,
    tell: Tell | None = None,
) -> Path:
    """The kernel image (vmlinuz) of the newest stock kernel of a suite, fetched as a package and unpacked, never installed.

    flavour: regular expression of the package name's last part; by default Debian's cloud kernel, or what it has for an
    architecture without one (but no real-time kernel), Ubuntu's kvm or generic one.
    Raises MissingDependencyError like ``fetch_package``.
    """
    own = _FLAVOURS.get(architecture)
    stock = rf"cloud-{re.escape(architecture)}" if own is None else rf"(?<!-rt-){own}"
    wanted = flavour if flavour is not None else rf"(?:{stock}|kvm|generic)"
    # Since 7.x Debian's image lies in linux-binary-*, and linux-image-* of the same version only depends on it.
    name_regex = rf"linux-(?:binary|binary-unsigned|image|image-unsigned)-[0-9].*-{wanted}"
    directory = fetch_package(suite, architecture, name_regex, cache_dir, run=run, tell=tell)
    for pattern in ("boot/vmlinu[xz]*", "usr/lib/modules/*/vmlinu[xz]*", "lib/modules/*/vmlinu[xz]*"):
        images = sorted(path for path in directory.glob(pattern) if path.is_file())
        if images:
            return images[-1]
    message = f"package {directory.name} holds no kernel image (vmlinuz or vmlinux); name another flavour"
    raise MissingDependencyError(message)


def host_kernel(boot: Path = Path("/boot")) -> Path:
    """The newest kernel image of this machine that may be read. Raises MissingDependencyError where there is none."""
    images = [path for path in boot.glob("vmlinuz*") if path.is_file() and "rescue" not in path.name]
    images.sort(key=lambda path: _natural(path.name), reverse=True)
    for image in images:
        if os.access(image, os.R_OK):
            return image
    if images:
        message = f"{images[0]} cannot be read by this user; run as root, or make it readable (chmod +r {images[0]})"
    else:
        message = f"there is no kernel image in {boot}; install a kernel package, or boot an image of your own"
    raise MissingDependencyError(message)


def stock_kernel(
    cache_dir: Path | None = None, boot: Path = Path("/boot"), *, run: Run = run_command, tell: Tell | None = None
) -> Path:
    """A kernel image to show things with: the stock kernel of this machine's suite, or where that fails the newest in /boot.

    Raises MissingDependencyError, which names the reasons of both, where there is neither.
    """
    try:
        return fetch_kernel("", cache_dir=cache_dir, run=run, tell=tell)
    except MissingDependencyError as error:
        try:
            image = host_kernel(boot)
        except MissingDependencyError as second:
            message = f"no kernel to boot: {error}; {second}"
            raise MissingDependencyError(message) from error
        if tell is not None:
            tell(f"{error}; taking {image} instead")
        return image


def _read_note(note: Path) -> Path | None:
    """The cached directory that a note names. A note holds nothing but the name of a directory beside it."""
    try:
        name = note.read_text("utf-8").strip()
    except OSError:
        return None
    unpacked = note.parent / name
    return unpacked if re.fullmatch(r"[a-z0-9][^/]*", name) and unpacked.is_dir() else None


def _fetch(mirror: Mirror, suite: str, architecture: str, name_regex: str, scratch: Path, run: Run, tell: Tell) -> Path:
    tell(f"asking the {mirror.origin} archive for {suite} ({architecture})")
    apt = _verified_apt(mirror, suite, architecture, scratch, run, tell)
    problems: list[MissingDependencyError] = []
    for package in apt.find(name_regex)[:_MAX_VERSIONS]:
        # Names and versions are Debian's: without a slash, beginning with a letter or digit (deb-control(5)).
        unpacked = scratch.parent / f"{package.name}_{package.version}_{architecture}"
        if unpacked.is_dir():
            return unpacked
        tell(f"fetching {package.name} {package.version}")
        try:
            apt.unpack(package, scratch / "tree")
        except MissingDependencyError as error:
            # A mirror may have the index of a new version before it has all of its packages.
            tell(str(error))
            problems.append(error)
            continue
        if not unpacked.is_dir():
            (scratch / "tree").rename(unpacked)
        return unpacked
    if problems:
        raise problems[0]
    message = f"suite {suite} has no package named like {name_regex}; name another suite or flavour"
    raise MissingDependencyError(message)


def _verified_apt(mirror: Mirror, suite: str, architecture: str, scratch: Path, run: Run, tell: Tell) -> PrivateApt:
    """A private apt root that holds the suite's verified index."""
    keyring = KEYRINGS.get(mirror.origin)
    if keyring is not None and not keyring.exists():
        keyring = None
    apt = PrivateApt(scratch / "apt", mirror, suite, architecture, keyring, run)
    result = apt.update()
    if result.returncode == 0:
        return apt
    if mirror.origin == "Debian" and "NO_PUBKEY" in result.stdout + result.stderr:
        # Signed by a key that came after this machine's keyring: a suite that does verify carries the newer keyring.
        for other in _NEWER_KEYRINGS:
            directory = scratch / f"keyring-{other}"
            elsewhere = PrivateApt(directory, mirror, other, architecture, keyring, run)
            package = elsewhere.find_newest("debian-archive-keyring") if elsewhere.update().returncode == 0 else None
            if package is None:
                continue
            tell(f"taking the archive keyring {package.version} from {other}")
            elsewhere.unpack(package, directory / "tree")
            newer = directory / "tree/usr/share/keyrings/debian-archive-keyring.gpg"
            apt = PrivateApt(scratch / f"apt-{other}", mirror, suite, architecture, newer, run)
            result = apt.update()
            if result.returncode == 0:
                return apt
    message = (
        f"the {mirror.origin} archive's suite {suite} ({architecture}) could not be fetched and verified ({reason(result)}); "
        "check the connection to this machine's package mirror, and that its archive keyring package is up to date"
    )
    raise MissingDependencyError(message)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that counts: 6.9 before 6.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"[0-9]+|[^0-9]+", name)]
