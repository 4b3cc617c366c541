"""A stock kernel, its modules and the Debian image become a running guest whose disk and network are virtio devices.

The initramfs (tests/guests/init.c) loads the kernel's own modules, mounts the disk and hands over to the image's systemd, or to the
program that ``guestprof.init=PATH`` on the command line names. All kernels boot the same image, each guest with its own overlay.
"""

from __future__ import annotations

import stat
import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from guestprof.initramfs import Entry, pack_newc
from tests.guests.build import INIT, build_programs
from tests.qemu.guests import QEMU, Guest, GuestOptions
from tests.qemu.kernel_modules import find_modules, module_entries
from tests.qemu.rootfs import PROGRAMS_DIRECTORY

WORKLOAD_MARK = "guestprof: debian workload"
"""On the console when systemd has started the workload; then "guestprof: round N" after each round."""
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "ext4", "overlay")
"""Loaded by the initramfs, with what they depend on, where the kernel has not built them in."""
TASK_TRUTH = f"/{PROGRAMS_DIRECTORY}/task-truth"


@dataclass(frozen=True, slots=True)
class DebianOptions:
    """How to boot the image. append: more of the kernel's command line. program, arguments: instead of systemd.

    modules: what the initramfs loads beside MODULES.
    """

    kernel: Path
    suite: str
    image: Path
    vcpus: int = 1
    append: str = ""
    program: str | None = None
    arguments: tuple[str, ...] = ()
    memory_mib: int = 512
    stub: bool = True
    modules: tuple[str, ...] = ()


def build_debian_initramfs(options: DebianOptions) -> bytes:
    """The initramfs for one kernel, gzipped. Raises MissingDependencyError."""
    with tempfile.TemporaryDirectory(prefix="gp-init-") as name:
        build_programs(Path(name), (INIT,))
        init = (Path(name) / INIT.name).read_bytes()
    archive = pack_newc(
        [
            *(Entry(name, stat.S_IFDIR | 0o755) for name in ("dev", "proc", "root")),
            Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            Entry("init", stat.S_IFREG | 0o755, init),
            *module_entries(find_modules(options.kernel, options.suite, (*MODULES, *options.modules))),
        ]
    )
    deflate = zlib.compressobj(1, zlib.DEFLATED, 31)
    return deflate.compress(archive) + deflate.flush()


def guest_options(options: DebianOptions, directory: Path) -> GuestOptions:
    """Options for ``Guest``, and the files it needs, in a directory that must outlive it. Raises MissingDependencyError."""
    initramfs = directory / f"initramfs-{'-'.join((options.suite, *options.modules))}.gz"
    if not initramfs.exists():
        initramfs.write_bytes(build_debian_initramfs(options))
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
        *(QEMU, "-accel", made.accelerator, "-cpu", made.processor, "-smp", str(made.vcpus), "-m", str(made.memory_mib)),
        *("-nodefaults", "-display", "none", "-serial", f"file:{console}", "-no-reboot"),
        *("-kernel", str(made.kernel), "-initrd", str(made.initramfs), "-append", f"console=ttyS0 {made.append}".strip()),
        *made.extra,
    ]


def start_debian(options: DebianOptions, directory: Path) -> Guest:
    """A guest with a stub and QMP; the caller closes it."""
    return Guest(guest_options(options, directory))
