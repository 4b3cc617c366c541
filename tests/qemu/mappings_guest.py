"""A guest whose processes run files in every place that a path can lead to, and whose console shows their /proc/PID/maps.

Console: ``maps PID COMM`` before the lines of a process' maps, ``cgroup PID PATH`` for each, ``end of maps`` behind them all.
"""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

from guestprof.initramfs import Entry, pack_newc
from tests.guests.build import Program, build_programs
from tests.qemu.kernel_modules import find_modules, module_entries

END_MARK = "end of maps"
MAPPINGS_TRUTH = Program("mappings-truth", "mappings_truth.c", ("-fno-pie", "-no-pie", "-static"))
MODULES = ("overlay", "loop", "ext4")
_MKE2FS = "/sbin/mke2fs"
LONG = "directory-with-a-name-too-long-to-lie-inside-its-dentry"

_INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /scratch /bound /stacked /ov /ext4 /cg /huge /jail
mount -t tmpfs scratch /scratch
while read -r f; do insmod "$f"; done </modules/list
run() {{ "$@" sleep 2147483647 & pids="$pids $!"; }}
sleep 2147483647 & pids=$!
cp /bin/busybox /scratch/busybox
run /scratch/busybox
mkdir -p /scratch/{LONG}/b
cp /bin/busybox "/scratch/{LONG}/b/busybox of a name that is too long as well: $(printf '\\377')"
run /scratch/{LONG}/b/busybox*
mount --bind /scratch/{LONG}/b /bound
run /bound/busybox*
mount -t tmpfs lower /stacked
mount -t tmpfs upper /stacked
cp /bin/busybox /stacked/busybox
run /stacked/busybox
cp /bin/busybox /scratch/busybox-gone
run /scratch/busybox-gone
mkdir /scratch/moved
cp /bin/busybox /scratch/moved/busybox
run /scratch/moved/busybox
mkdir -p /scratch/lower /scratch/upper /scratch/work
cp /bin/busybox /scratch/lower/busybox-low
mount -t overlay -o lowerdir=/scratch/lower,upperdir=/scratch/upper,workdir=/scratch/work overlay /ov
cp /bin/busybox /ov/busybox-up
run /ov/busybox-low
run /ov/busybox-up
if [ -f /ext4.image ]; then
    mount -t ext4 -o loop,ro /ext4.image /ext4
    run /ext4/busybox
fi
mount -t tmpfs -o huge=always huge /huge
cp /bin/busybox /huge/busybox
run /huge/busybox
mkdir -p /jail
mount -t tmpfs jail /jail
cp /bin/busybox /jail/busybox
run chroot /jail /busybox
run unshare -m /bin/busybox
mappings-truth /scratch/busybox &
pids="$pids $!"
mount -t cgroup2 cg /cg
mkdir -p /cg/system.slice/a-service.service
echo $! >/cg/system.slice/a-service.service/cgroup.procs
sleep 1
rm /scratch/busybox-gone
mv /scratch/moved /scratch/away
for pid in $pids; do
    echo "maps $pid $(cat /proc/$pid/comm)"
    cat /proc/$pid/maps
    echo "cgroup $pid $(grep ^0:: /proc/$pid/cgroup | cut -c4-)"
done
stat -c "file %n %i %s %Y" /bin/busybox /scratch/busybox
echo "{END_MARK}"
while :; do sleep 1000; done
"""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a guest showed of one of its processes. maps: lines as they were; cgroup: "" where it had none."""

    pid: int
    comm: str
    maps: tuple[bytes, ...]
    cgroup: str


def build_mappings_initramfs(kernel: Path, suite: str, busybox: bytes, directory: Path) -> bytes:
    """The initramfs. Raises MissingDependencyError where there is no compiler, or no modules of the kernel."""
    build_programs(directory, (MAPPINGS_TRUTH,))
    program = (directory / MAPPINGS_TRUTH.name).read_bytes()
    image = _build_ext4(busybox, directory)
    directories = [Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "proc", "sys")]
    archive = pack_newc(
        [
            *directories,
            Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            Entry("bin/busybox", stat.S_IFREG | 0o755, busybox),
            Entry("bin/mappings-truth", stat.S_IFREG | 0o755, program),
            Entry("init", stat.S_IFREG | 0o755, _INIT.encode()),
            *([Entry("ext4.image", stat.S_IFREG | 0o644, image)] if image else []),
            *module_entries(find_modules(kernel, suite, MODULES)),
        ]
    )
    deflate = zlib.compressobj(1, zlib.DEFLATED, 31)
    return deflate.compress(archive) + deflate.flush()


def _build_ext4(busybox: bytes, directory: Path) -> bytes | None:
    """A disk with a file /busybox, None where this machine cannot make one."""
    if shutil.which(_MKE2FS) is None:
        return None
    tree = directory / "tree"
    tree.mkdir(exist_ok=True)
    (tree / "busybox").write_bytes(busybox)
    (tree / "busybox").chmod(0o755)
    image = directory / "ext4.image"
    command = [_MKE2FS, "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", str(tree), str(image), "6M"]
    subprocess.run(command, check=True, capture_output=True)
    return image.read_bytes()


def parse_console(console: bytes) -> list[Shown]:
    """What the guest showed, in its order."""
    shown = []
    for match in re.finditer(rb"^maps (\d+) ([^\r\n]*)\r?\n(.*?)^cgroup \d+ ([^\r\n]*)\r?$", console, re.MULTILINE | re.DOTALL):
        pid, comm, maps, cgroup = match.groups()
        lines = tuple(line.rstrip(b"\r") for line in maps.split(b"\n") if re.match(rb"[0-9a-f]+-[0-9a-f]+ ", line))
        shown.append(Shown(int(pid), comm.decode(), lines, cgroup.decode()))
    return shown
