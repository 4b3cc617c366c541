"""Packages of Debian 12 and the programs of tests/guests become a disk image: a real userspace for guests.

Made in two steps, both kept in the user's cache directory: mmdebstrap makes an archive of the installed packages (a minute,
seldom), and mke2fs an ext4 image of that with our programs added (seconds, when they change). Delete it to get newer packages.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

from guestprof.apt import find_mirror, run_command
from guestprof.debian import KEYRINGS
from recording.errors import MissingDependencyError
from tests.guests.build import build_programs, fingerprint

SUITE = "bookworm"
PACKAGES = (
    *("systemd-sysv", "python3", "xz-utils", "openssl", "findutils", "coreutils", "iputils-ping", "libstdc++6"),
    "ripgrep",  # Rust: position independent, with unwind tables
    "gron",  # Go: frame pointers, no unwind tables
)
"""What the guest has installed besides the essential packages."""
PROGRAMS_DIRECTORY = "usr/local/lib/guestprof"
"""Where the programs of tests/guests are in the guest."""

# What a guest that lives for a minute has no use for, and what waits for devices that it does not have.
MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service"),
    *("fstrim.timer", "systemd-tmpfiles-clean.timer", "systemd-timesyncd.service", "systemd-networkd.service"),
    *("getty.target", "serial-getty@ttyS0.service", "getty@tty1.service", "systemd-ask-password-wall.path"),
    *("systemd-random-seed.service", "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service"),
    *("systemd-machine-id-commit.service", "systemd-firstboot.service", "systemd-pstore.service", "systemd-binfmt.service"),
    *("modprobe@configfs.service", "modprobe@drm.service", "modprobe@efi_pstore.service", "modprobe@fuse.service"),
    *("kmod-static-nodes.service", "systemd-modules-load.service", "systemd-hwdb-update.service", "ldconfig.service"),
    *("systemd-journal-flush.service", "systemd-journal-catalog-update.service", "systemd-update-done.service"),
    *("dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount"),
    *("sys-fs-fuse-connections.mount", "modprobe@dm_mod.service", "modprobe@loop.service", "systemd-tmpfiles-setup-dev.service"),
    *("systemd-user-sessions.service", "systemd-remount-fs.service", "systemd-sysctl.service", "systemd-sysusers.service"),
)
COMMON_OPTIONS = (
    *(
        "--quiet",
        '--aptopt=Acquire::Languages "none"',
        '--aptopt=Acquire::Retries "3"',
        "--dpkgopt=force-unsafe-io",
    ),
    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "info", "locale", "man")),
)
"""Of mmdebstrap."""
_MMDEBSTRAP_OPTIONS = ("--variant=essential", *COMMON_OPTIONS)
_SIZE_MIB = 640
_PARTITION_START = 1 << 20
_TIMEOUT_S = 900.0


def default_cache_dir() -> Path:
    """Where archives and images are kept."""
    return user_cache_path("guestprof") / "rootfs"


def root_image(cache_dir: Path | None = None, *, partitioned: bool = False) -> Path:
    """A qcow2 image with an ext4 root file system: on the whole disk, or in the first partition of an MBR. Never to be written to.

    Raises MissingDependencyError with the reason and the remedy where it cannot be made.
    """
    cache = cache_dir if cache_dir is not None else default_cache_dir()
    packages = hashlib.sha256(repr((SUITE, PACKAGES, _MMDEBSTRAP_OPTIONS)).encode()).hexdigest()[:16]
    made_by = hashlib.sha256(Path(__file__).read_bytes() + fingerprint().encode()).hexdigest()[:16]
    image = cache / f"{SUITE}-{packages}-{made_by}-{'partition' if partitioned else 'disk'}.qcow2"
    if image.exists():
        return image
    if os.geteuid() != 0:
        message = f"a root file system is made as root only; run this as root once, which leaves it in {cache}"
        raise MissingDependencyError(message)
    with made_once(image) as scratch:
        if scratch is None:
            return image
        archive = cache / f"{SUITE}-{packages}.tar"
        if not archive.exists():
            _make_archive(scratch / "archive.tar")
            (scratch / "archive.tar").replace(archive)
        _make_image(archive, scratch, _PARTITION_START if partitioned else 0)
        for old in cache.glob(f"{SUITE}-*-{image.name.rpartition('-')[2]}"):
            old.unlink()
        (scratch / "image.qcow2").replace(image)
    return image


@contextmanager
def made_once(image: Path) -> Iterator[Path | None]:
    """A directory beside an image to make it in; None where somebody else, for whom this waits, has made it meanwhile."""
    image.parent.mkdir(parents=True, exist_ok=True)
    with (image.parent / f".{image.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if image.exists():
            yield None
            return
        with tempfile.TemporaryDirectory(prefix=".make-", dir=image.parent) as name:
            yield Path(name)


def _make_archive(archive: Path) -> None:
    """The installed packages, as a tar archive."""
    make_archive(archive, PACKAGES, _MMDEBSTRAP_OPTIONS)


def make_archive(archive: Path, packages: Sequence[str], options: Sequence[str]) -> None:
    """Packages of SUITE and what they depend on, as a tar archive. options: of mmdebstrap. Raises MissingDependencyError."""
    mirror = find_mirror()
    if mirror.origin != "Debian":
        message = f"this machine's package mirror is {mirror.origin}'s, not Debian's: no {SUITE} root file system can be made of it"
        raise MissingDependencyError(message)
    signed_by = f"[signed-by={KEYRINGS['Debian']}] " if KEYRINGS["Debian"].exists() else ""
    source = f"deb {signed_by}{mirror.uri} {SUITE} main"
    command = ["mmdebstrap", "--mode=root", *options, f"--include={','.join(packages)}", SUITE, str(archive), source]
    run_tool(command, archive.parent)


def _make_image(archive: Path, scratch: Path, start: int) -> None:
    """image.qcow2 in the scratch directory. start: of the file system, in bytes; 0 for a disk without partitions."""
    tree = scratch / "tree"
    tree.mkdir()
    # The kernel fills /dev itself (devtmpfs).
    run_tool(["tar", "--extract", "--preserve-permissions", "--numeric-owner", "--exclude=./dev/*", "--file", str(archive)], tree)
    _add_files(tree)
    raw = scratch / "image.raw"
    with raw.open("wb") as file:
        file.truncate((_SIZE_MIB << 20) + start)
        if start:
            # One entry of type 0x83 (Linux) in the table at 446, and the signature; sectors of 512 bytes.
            entry = struct.pack("<B3sB3sII", 0, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", start // 512, (_SIZE_MIB << 20) // 512)
            file.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
    options = f"offset={start},lazy_itable_init=0,lazy_journal_init=1"
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-m", "0", "-J", "size=4", "-E", options, "-d", str(tree)]
    run_tool([*command, str(raw), f"{_SIZE_MIB}M"], scratch)
    run_tool(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(scratch / "image.qcow2")], scratch)


def _add_files(tree: Path) -> None:
    """Our programs, the workload's unit, and what makes systemd start quickly."""
    guests = Path(__file__).parent.parent / "guests"
    programs = tree / PROGRAMS_DIRECTORY
    programs.mkdir(parents=True)
    build_programs(programs)
    for name in ("workload.sh", "workload.py"):
        shutil.copy(guests / name, programs / name)
        (programs / name).chmod(0o755)
    document = [{"number": i, "text": f"line {i}", "list": [{"deep": [i, i + 1]}] * 3} for i in range(400)]
    (programs / "workload.json").write_text(json.dumps(document), "utf-8")

    units = tree / "etc/systemd/system"
    shutil.copy(guests / "workload.service", units / "workload.service")
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "workload.service").symlink_to("/etc/systemd/system/workload.service")
    shorten_start(tree, MASKED)


def shorten_start(tree: Path, masked: Sequence[str]) -> None:
    """What makes systemd start quickly in a root file system: units that are not to run, a machine that is known."""
    units = tree / "etc/systemd/system"
    for name in masked:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    generators = tree / "etc/systemd/system-generators"
    generators.mkdir(exist_ok=True)
    for path in (tree / "lib/systemd/system-generators").iterdir():
        (generators / path.name).symlink_to("/dev/null")
    default = units / "default.target"
    default.unlink(missing_ok=True)
    default.symlink_to("/lib/systemd/system/multi-user.target")
    # A known machine is not set up for the first time (machine-id(5)).
    (tree / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n", "utf-8")
    (tree / "etc/hostname").write_text("guest\n", "utf-8")
    (tree / "etc/fstab").write_text("# The initramfs has mounted the root file system.\n", "utf-8")
    for name in ("etc/.updated", "var/.updated"):
        (tree / name).touch()


def run_tool(command: Sequence[str], directory: Path) -> None:
    """Run a command in a directory. Raises MissingDependencyError with what it printed where it fails."""
    result = run_command(command, directory)
    if result.returncode != 0:
        lines = f"{result.stdout}\n{result.stderr}".strip()[-2000:]
        message = f"{command[0]} failed, so guests have no root file system: {lines}; check the package mirror and the disk's room"
        raise MissingDependencyError(message)
