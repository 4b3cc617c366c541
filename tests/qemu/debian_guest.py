"""A stock kernel, its modules and the Debian image become a running guest whose disk and network are virtio devices.

The initramfs loads the kernel's own modules, mounts the disk and hands over to the image's systemd, or to the program that
``guestprof.init=PATH`` on the kernel's command line names. All kernels boot the same image; each guest writes to its own overlay.
"""

from __future__ import annotations

import stat
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

from guestprof.initramfs import Entry, find_busybox, pack_newc
from tests.qemu.guests import QEMU, Guest, GuestOptions
from tests.qemu.kernel_modules import MODULES_LIST, find_modules, module_entries
from tests.qemu.rootfs import PROGRAMS_DIRECTORY

WORKLOAD_MARK = "guestprof: debian workload"
"""On the console when systemd has started the workload; then "guestprof: round N" after each round."""
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "ext4", "overlay")
"""Loaded by the initramfs, with what they depend on, where the kernel has not built them in."""
TASK_TRUTH = f"/{PROGRAMS_DIRECTORY}/task-truth"

_INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
while read -r file; do insmod "$file"; done </{MODULES_LIST}
disk=/dev/vda
[ ! -b /dev/vda1 ] || disk=/dev/vda1
mount -t ext4 "$disk" /root || exec sh
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up && ip route add default via 10.0.2.2
init=$(sed -n "s/.*guestprof\\\\.init=\\\\([^ ]*\\\\).*/\\\\1/p" /proc/cmdline)
arguments=$(sed -n "s/.*guestprof\\\\.arguments=\\\\([^ ]*\\\\).*/\\\\1/p" /proc/cmdline | tr , " ")
umount /proc
mount --move /dev /root/dev
# shellcheck disable=SC2086
exec switch_root /root "${{init:-/sbin/init}}" $arguments
"""


@dataclass(frozen=True, slots=True)
class DebianOptions:
    """How to boot the image. append: more of the kernel's command line. program, arguments: instead of systemd."""

    kernel: Path
    suite: str
    image: Path
    vcpus: int = 1
    append: str = ""
    program: str | None = None
    arguments: tuple[str, ...] = ()
    memory_mib: int = 512
    stub: bool = True


def build_debian_initramfs(kernel: Path, suite: str) -> bytes:
    """The initramfs for one kernel, gzipped. Raises MissingDependencyError."""
    directories = [Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "proc", "root")]
    archive = pack_newc(
        [
            *directories,
            Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            Entry("bin/busybox", stat.S_IFREG | 0o755, find_busybox()),
            Entry("init", stat.S_IFREG | 0o755, _INIT.encode()),
            *module_entries(find_modules(kernel, suite, MODULES)),
        ]
    )
    deflate = zlib.compressobj(1, zlib.DEFLATED, 31)
    return deflate.compress(archive) + deflate.flush()


def guest_options(options: DebianOptions, directory: Path) -> GuestOptions:
    """Options for ``Guest``, and the files it needs, in a directory that must outlive it. Raises MissingDependencyError."""
    initramfs = directory / f"initramfs-{options.suite}.gz"
    if not initramfs.exists():
        initramfs.write_bytes(build_debian_initramfs(options.kernel, options.suite))
    number = len(list(directory.glob("disk-*.qcow2")))
    disk = directory / f"disk-{number}.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(options.image), "-F", "qcow2", str(disk)], check=True)
    # On a slow console every line costs.
    words = ["quiet", options.append]
    if options.program is not None:
        words.append(f"guestprof.init={options.program}")
        words.extend([f"guestprof.arguments={','.join(options.arguments)}"] if options.arguments else [])
    return GuestOptions(
        options.kernel,
        initramfs,
        vcpus=options.vcpus,
        append=" ".join(word for word in words if word),
        memory_mib=options.memory_mib,
        stub=options.stub,
        extra=(
            *("-drive", f"file={disk},if=virtio,format=qcow2"),
            # Nothing of the guest's network reaches the host: only QEMU's own gateway answers.
            *("-netdev", "user,id=n0,restrict=on", "-device", "virtio-net-pci,netdev=n0,romfile="),
        ),
    )


def qemu_command(options: DebianOptions, directory: Path, console: Path) -> list[str]:
    """QEMU's command line without stub and QMP sockets, for ``guestprof boot``, which adds its own."""
    made = guest_options(options, directory)
    return [
        *(QEMU, "-accel", made.accelerator, "-cpu", made.cpu, "-smp", str(made.vcpus), "-m", str(made.memory_mib)),
        *("-nodefaults", "-display", "none", "-serial", f"file:{console}", "-no-reboot"),
        *("-kernel", str(made.kernel), "-initrd", str(made.initramfs), "-append", f"console=ttyS0 {made.append}".strip()),
        *made.extra,
    ]


def start_debian(options: DebianOptions, directory: Path) -> Guest:
    """A guest with a stub and QMP; the caller closes it."""
    return Guest(guest_options(options, directory))
