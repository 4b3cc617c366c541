"""A static busybox becomes an initramfs: a userspace that boots on any kernel and keeps it busy in the ways that guests are.

The archive is the kernel's "newc" cpio (Documentation/driver-api/early-userspace/buffer-format.rst), gzipped. The same busybox
gives the same bytes.

Kernel command line switches that the guest's /init obeys:
``guestprof.workload=mixed`` (default: parallel find, dd, pipes, forks, loopback network), ``idle`` (wakes once a second) or
``none`` (sleeps for ever, without the workload's mark); ``guestprof.poweroff=SECONDS`` and ``guestprof.reboot=SECONDS`` after boot.
"""

from __future__ import annotations

import os
import shutil
import stat
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from guestprof.apt import Run, run_command
from guestprof.debian import Tell, fetch_package
from recording.errors import MissingDependencyError

USERSPACE_MARK = "guestprof: userspace"
"""Printed on the guest's console by the first process."""
WORKLOAD_MARK = "guestprof: workload"
"""Printed on the guest's console when the workload has been started."""

INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
ip link set lo up 2>/dev/null
echo "{USERSPACE_MARK} $(uname -r)"

switch() {{ sed -n "s/.*guestprof\\.$1=\\([a-z0-9]*\\).*/\\1/p" /proc/cmdline; }}
off=$(switch poweroff)
again=$(switch reboot)
[ -z "$off" ] || (sleep "$off"; poweroff -f) &
[ -z "$again" ] || (sleep "$again"; reboot -f) &

find_files() {{ while :; do find / -xdev -type f >/dev/null 2>&1; find /proc /sys >/dev/null 2>&1; done; }}
copy() {{
    while :; do
        dd if=/dev/zero of=/tmp/copy bs=64k count=64 2>/dev/null
        dd if=/dev/urandom of=/dev/null bs=4k count=64 2>/dev/null
    done
}}
pipe() {{ while :; do seq 1 2000 | cat | sort -n | md5sum >/dev/null; done; }}
fork() {{ while :; do for i in 1 2 3 4 5 6 7 8; do (true); /bin/true; done; done; }}
network() {{
    mkdir /tmp/www
    dd if=/dev/zero of=/tmp/www/page bs=64k count=16 2>/dev/null
    httpd -p 127.0.0.1:5000 -h /tmp/www
    while :; do wget -q -O - http://127.0.0.1:5000/page >/dev/null || sleep 1; done
}}

case "$(switch workload)" in
none) exec sleep 2147483647 ;;
idle) ;;
*) find_files & copy & pipe & fork & network & ;;
esac
echo "{WORKLOAD_MARK}"
while :; do sleep 1; done
"""
"""The first process: mounts what programs expect, and keeps the guest busy as the switches say."""

_BUSYBOX_NAMES = ("busybox", "busybox.static", "busybox-static")
_MAX_BUSYBOX = 64 << 20
_ELF_MACHINES = {"amd64": 62, "i386": 3, "arm64": 183, "riscv64": 243}
_PT_INTERP = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the archive. mode: st_mode with its type bits. device: (major, minor) of a device node."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def build_initramfs(busybox: bytes, init: str = INIT) -> bytes:
    """The initramfs, gzipped: this busybox, the directories that /init mounts on, the console that the kernel opens for it."""
    directories = [Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "proc", "sys", "tmp")]
    archive = pack_newc(
        [
            *directories,
            Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            Entry("bin/busybox", stat.S_IFREG | 0o755, busybox),
            Entry("init", stat.S_IFREG | 0o755, init.encode()),
        ]
    )
    # wbits 31 is a gzip header without name or time.
    deflate = zlib.compressobj(6, zlib.DEFLATED, 31)
    return deflate.compress(archive) + deflate.flush()


def pack_newc(entries: Iterable[Entry]) -> bytes:
    """A cpio archive in "newc" format: numbers as 8 hex digits, names and data padded to 4 bytes, all owned by root, time 0."""
    out = bytearray()
    trailer = Entry("TRAILER!!!", 0)
    for inode, entry in enumerate([*entries, trailer], start=1):
        name = entry.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + name
        out += bytes(-len(out) % 4) + entry.data
        out += bytes(-len(out) % 4)
    return bytes(out)


def find_busybox(
    architecture: str = "amd64",
    cache_dir: Path | None = None,
    *,
    suite: str = "",
    path: str | None = None,
    run: Run = run_command,
    tell: Tell | None = None,
) -> bytes:
    """A static busybox for a guest's architecture (Debian's name): this machine's, or else fetched as a package and unpacked.

    suite: of the package, by default this machine's. path: directories to look in, as in $PATH, which is the default.
    Raises MissingDependencyError.
    """
    search = (
        path
        if path is not None
        else os.pathsep.join([os.environ.get("PATH", os.defpath), "/bin", "/usr/bin", "/sbin", "/usr/sbin"])
    )
    for name in _BUSYBOX_NAMES:
        found = shutil.which(name, path=search)
        data = _read_static(Path(found), architecture) if found is not None else None
        if data is not None:
            return data
    try:
        package = fetch_package(suite, architecture, "busybox-static", cache_dir, run=run, tell=tell)
    except MissingDependencyError as error:
        message = f"no static busybox for {architecture} on this machine ({error}); install one (package busybox-static or busybox)"
        raise MissingDependencyError(message) from error
    for name in ("bin/busybox", "usr/bin/busybox"):
        if (package / name).is_file():
            return (package / name).read_bytes()
    message = f"package {package.name} holds no busybox; install a static one (package busybox-static or busybox)"
    raise MissingDependencyError(message)


def is_static_elf(data: bytes, architecture: str) -> bool:
    """Whether an executable needs no interpreter and is for that architecture (gABI chapters 4 and 5; little endian).

    For an architecture that is not in the table the answer is no: nothing of this machine's is taken for it.
    """
    if len(data) < 64 or data[:4] != b"\x7fELF" or data[5] != 1:
        return False
    is_64bit = data[4] == 2

    def number(offset: int, size: int) -> int:
        return int.from_bytes(data[offset : offset + size], "little")

    table, entry_size, count = (
        (number(32, 8), number(54, 2), number(56, 2)) if is_64bit else (number(28, 4), number(42, 2), number(44, 2))
    )
    types = {number(table + index * entry_size, 4) for index in range(count)}
    return number(18, 2) == _ELF_MACHINES.get(architecture) and _PT_INTERP not in types


def _read_static(path: Path, architecture: str) -> bytes | None:
    try:
        if path.stat().st_size > _MAX_BUSYBOX:
            return None
        data = path.read_bytes()
    except OSError:
        return None
    return data if is_static_elf(data, architecture) else None
