"""Packages of Debian become disk images that firmware boots by itself: GRUB or U-Boot, a kernel, an initramfs, and systemd.

One image boots under a BIOS (GRUB between the partition table and the first partition, patched as grub-bios-setup does:
grub-core/boot/i386/pc/boot.S and diskboot.S) and under UEFI (GRUB as the removable medium's program, UEFI 3.5.1.1). Packages of
this machine's architecture are installed for real, with initramfs-tools; those of another one are unpacked only, and their
initramfs has a busybox that switches to the disk. Kept in the user's cache directory; delete it to get newer packages.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from guestprof.debian import fetch_kernel, fetch_package
from guestprof.initramfs import INIT, Entry, build_initramfs, find_busybox, pack_newc
from tests.qemu.kernel_modules import find_modules, module_entries
from tests.qemu.rootfs import COMMON_OPTIONS, MASKED, SUITE, default_cache_dir, made_once, make_archive, run_tool, shorten_start

LOGIN = "login: $"
"""What the console shows when the guest is up."""

_FIRST_START = 1 << 20
_FAT, _LINUX = 0xEF, 0x83
_ROOT_MIB = 600
_PACKAGES = ("systemd-sysv", "udev", "login", "util-linux")
_UNPACKED = (*_PACKAGES, "base-files", "base-passwd", "bash", "coreutils", "dash", "libc-bin", "mount", "passwd")
_SETUP = """\
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/etc/initramfs-tools/hooks"
printf 'MODULES=list\\nCOMPRESS=gzip\\n' >"$1/etc/initramfs-tools/conf.d/guest"
cat >"$1/etc/initramfs-tools/hooks/guest" <<'END'
#!/bin/sh
[ "$1" = prereqs ] && exit
. /usr/share/initramfs-tools/hook-functions
manual_add_modules virtio_pci virtio_blk ext4
END
chmod +x "$1/etc/initramfs-tools/hooks/guest"
"""
_MODULES = ("virtio_pci", "virtio_blk", "ext4")
_GRUB_MODULES = ("part_msdos", "ext2", "normal", "linux")
_GRUB_CONFIG = """\
set timeout=0
menuentry Debian {
    linux /vmlinuz root=/dev/vda2 ro quiet console=CONSOLE
    initrd /initrd.img
}
"""
_EXTLINUX = """\
default debian
label debian
    kernel /vmlinuz
    initrd /initrd.img
    append quiet console=ttyS0
"""
_SWITCH = """#!/bin/busybox sh
/bin/busybox mkdir -p /dev /proc /root
/bin/busybox mount -t devtmpfs dev /dev
while read -r file; do /bin/busybox insmod "$file"; done </modules/list
/bin/busybox mount -t ext4 -o ro /dev/vda2 /root || exec /bin/busybox sh
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /lib/systemd/systemd
"""
_LOGIN_INIT = INIT.partition("find_files()")[0] + 'echo; printf "guest login: "\nwhile :; do sleep 1; done\n'


@dataclass(frozen=True, slots=True)
class Disk:
    """What to make. name: Debian's of the architecture. loader: (GRUB's platform, its package, file on the EFI partition).

    bios: GRUB's package for a BIOS, "" without one.
    """

    name: str
    console: str
    loader: tuple[str, str, str]
    bios: str = ""


AMD64 = Disk("amd64", "ttyS0", ("x86_64-efi", "grub-efi-amd64-bin", "BOOTX64.EFI"), "grub-pc-bin")
ARM64 = Disk("arm64", "ttyAMA0", ("arm64-efi", "grub-efi-arm64-bin", "BOOTAA64.EFI"))


def debian_disk(disk: Disk) -> Path:
    """A qcow2 image of Debian with systemd; never to be written to. Raises MissingDependencyError."""
    return _cached(f"boot-{disk.name}", lambda scratch: _make_debian(disk, scratch))


def uboot_disk(suite: str = "trixie") -> Path:
    """A qcow2 image for U-Boot on riscv64: its kernel and a busybox that asks for a login. Raises MissingDependencyError."""
    return _cached("boot-riscv64", lambda scratch: _make_uboot(suite, scratch))


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    made_by = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    cache = default_cache_dir()
    image = cache / f"{name}-{made_by}.qcow2"
    if image.exists():
        return image
    with made_once(image) as scratch:
        if scratch is None:
            return image
        make(scratch)
        run_tool(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "image.raw", "image.qcow2"], scratch)
        for old in cache.glob(f"{name}-*.qcow2"):
            old.unlink()
        (scratch / "image.qcow2").replace(image)
    return image


def _make_debian(disk: Disk, scratch: Path) -> None:
    archive, tree = scratch / "archive.tar", scratch / "tree"
    if disk.bios:
        packages = (*_PACKAGES, "initramfs-tools", f"linux-image-cloud-{disk.name}")
        make_archive(archive, packages, ("--variant=essential", *COMMON_OPTIONS, f"--setup-hook={_SETUP}"))
    else:
        make_archive(archive, _UNPACKED, ("--variant=extract", f"--architectures={disk.name}", *COMMON_OPTIONS))
    tree.mkdir()
    # The kernel fills /dev itself (devtmpfs).
    run_tool(["tar", "--extract", "--preserve-permissions", "--numeric-owner", "--exclude=./dev/*", "--file", str(archive)], tree)
    archive.unlink()
    if disk.bios:
        for name in ("vmlinuz", "initrd.img"):
            (found,) = (tree / "boot").glob(f"{name}-*")
            found.rename(tree / name)
    else:
        _add_unpacked(disk, tree)
    _add_settings(disk, tree)
    _make_image(disk, tree, scratch)


def _add_unpacked(disk: Disk, tree: Path) -> None:
    """What the packages' own scripts would have made: users; and a kernel with an initramfs that switches to the disk."""
    for name in ("passwd", "group"):
        shutil.copy(tree / f"usr/share/base-passwd/{name}.master", tree / "etc" / name)
    kernel = fetch_kernel(SUITE, disk.name)
    shutil.copy(kernel, tree / "vmlinuz")
    archive = pack_newc(
        [
            *(Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "root")),
            Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            Entry("bin/busybox", stat.S_IFREG | 0o755, find_busybox(disk.name)),
            Entry("init", stat.S_IFREG | 0o755, _SWITCH.encode()),
            *module_entries(find_modules(kernel, SUITE, _MODULES)),
        ]
    )
    deflate = zlib.compressobj(1, zlib.DEFLATED, 31)
    (tree / "initrd.img").write_bytes(deflate.compress(archive) + deflate.flush())


def _add_settings(disk: Disk, tree: Path) -> None:
    getty = f"serial-getty@{disk.console}.service"
    shorten_start(tree, [name for name in MASKED if "getty" not in name])
    wants = tree / "etc/systemd/system/getty.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / getty).unlink(missing_ok=True)
    (wants / getty).symlink_to("/lib/systemd/system/serial-getty@.service")
    grub = tree / "boot/grub"
    grub.mkdir(parents=True)
    (grub / "grub.cfg").write_text(_GRUB_CONFIG.replace("CONSOLE", disk.console), "utf-8")


def _make_image(disk: Disk, tree: Path, scratch: Path) -> None:
    """image.raw: a partition for UEFI, one with the root file system, and GRUB for both kinds of firmware."""
    prefix = "--prefix=(hd0,msdos2)/boot/grub"
    platform, package, program = disk.loader
    modules = fetch_package(SUITE, disk.name, package) / "usr/lib/grub" / platform
    command = ["grub-mkimage", f"--directory={modules}", f"--format={platform}", f"--output={program}", prefix]
    run_tool([*command, *_GRUB_MODULES], scratch)
    _make_fat(scratch / "fat", 8, {f"EFI/BOOT/{program}": scratch / program}, scratch)
    root = scratch / "root"
    with root.open("wb") as file:
        file.truncate(_ROOT_MIB << 20)
    options = "lazy_itable_init=0,lazy_journal_init=1"
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-J", "size=4", "-E", options, "-d", str(tree), str(root)], scratch)
    boot_code = core = b""
    if disk.bios:
        modules = fetch_package(SUITE, disk.name, disk.bios) / "usr/lib/grub/i386-pc"
        command = ["grub-mkimage", f"--directory={modules}", "--format=i386-pc", "--output=core.img", prefix, "biosdisk"]
        run_tool([*command, *_GRUB_MODULES], scratch)
        boot_code, core = _patched((modules / "boot.img").read_bytes(), (scratch / "core.img").read_bytes())
    _write_disk(scratch / "image.raw", ((_FAT, scratch / "fat"), (_LINUX, root)), boot_code, core)


def _patched(boot: bytes, core: bytes) -> tuple[bytes, bytes]:
    """GRUB's first sector told that its core is in sector 1, and the core's first sector where its rest is."""
    boot = boot[:0x5C] + struct.pack("<Q", 1) + boot[0x64:440]
    return boot, core[:500] + struct.pack("<Q", 2) + core[508:]


def _make_fat(path: Path, size_mib: int, files: dict[str, Path], scratch: Path) -> None:
    with path.open("wb") as file:
        file.truncate(size_mib << 20)
    run_tool(["mkfs.vfat", "-F", "16", "-s", "1" if size_mib < 32 else "4", str(path)], scratch)
    directories = dict.fromkeys(str(parent) for name in files for parent in reversed(Path(name).parents) if parent.name)
    for directory in directories:
        run_tool(["mmd", "-i", str(path), f"::{directory}"], scratch)
    for name, source in files.items():
        run_tool(["mcopy", "-i", str(path), str(source), f"::{name}"], scratch)


def _write_disk(path: Path, partitions: Sequence[tuple[int, Path]], boot_code: bytes = b"", core: bytes = b"") -> None:
    """A disk with an MBR: boot code, the table at 446, the signature; what is loaded by the boot code lies behind it."""
    table, at = b"", _FIRST_START
    with path.open("wb") as disk:
        for kind, source in partitions:
            size = source.stat().st_size
            table += struct.pack("<B3sB3sII", 0x80 * (not table), b"\xfe\xff\xff", kind, b"\xfe\xff\xff", at // 512, size // 512)
            disk.seek(at)
            with source.open("rb") as file:
                shutil.copyfileobj(file, disk, 1 << 20)
            at += size
        disk.seek(0)
        disk.write(boot_code.ljust(446, b"\0") + table.ljust(64, b"\0") + b"\x55\xaa" + core)


def _make_uboot(suite: str, scratch: Path) -> None:
    initramfs = build_initramfs(find_busybox("riscv64", suite=suite), _LOGIN_INIT)
    (scratch / "initrd.img").write_bytes(initramfs)
    (scratch / "extlinux.conf").write_text(_EXTLINUX, "utf-8")
    kernel = fetch_kernel(suite, "riscv64")
    files = {"vmlinuz": kernel, "initrd.img": scratch / "initrd.img", "extlinux/extlinux.conf": scratch / "extlinux.conf"}
    _make_fat(scratch / "fat", 64, files, scratch)
    _write_disk(scratch / "image.raw", ((0x0E, scratch / "fat"),))
