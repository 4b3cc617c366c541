#!/bin/sh
# A fresh machine becomes one that can run "make demo" or "make test": packages by apt, Python packages in .venv.
# Usage: tools/setup.sh demo|lint|test|bench
# Installs only what is missing. Without apt, or without the right to install, it says what is needed and fails.
set -eu

purpose=${1:?usage: tools/setup.sh demo|lint|test|bench}
cd "$(dirname "$0")/.."

say() { printf '%s\n' "guestprof: $*" >&2; }
fail() {
    say "$*"
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }
# Debian's users do not have these directories in their PATH.
has_tool() { has "$1" || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }

has_static_busybox() {
    for name in busybox busybox.static busybox-static; do
        path=$(command -v "$name" 2>/dev/null) || continue
        # ldd knows neither word for a dynamic executable, and fails for a static one.
        if LC_ALL=C ldd "$path" 2>&1 | grep -Eq 'not a dynamic|statically linked|Not a valid dynamic'; then
            return 0
        fi
    done
    return 1
}

# The first Python that is new enough and can make virtual environments.
find_python() {
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        if has "$name" && "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$name"
            return 0
        fi
    done
    return 1
}

# Sets "missing" (Debian's package names) and "wanted" (the same for people on other distributions).
missing='' wanted='' optional=''
need() {
    missing="$missing $1"
    wanted="$wanted
    - $2"
}
look() {
    missing='' wanted='' optional=''
    find_python >/dev/null || need 'python3 python3-venv' 'Python 3.11 or newer with its venv module'
    [ "$purpose" = lint ] || has qemu-system-x86_64 || need qemu-system-x86 'QEMU for x86-64 (qemu-system-x86_64)'
    [ "$purpose" = lint ] || has_static_busybox || need busybox-static 'busybox, statically linked'
    if [ "$purpose" != lint ] && has apt-get; then
        # apt verifies signatures with one of these.
        has gpgv || has sqv || need gpgv 'gpgv'
        [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || ! grep -qx 'ID=debian' /etc/os-release ||
            need debian-archive-keyring "Debian's archive keyring"
    fi
    [ "$purpose" != bench ] || has gdb || need gdb 'gdb'
    [ "$purpose" != bench ] || has gdb-multiarch || need gdb-multiarch gdb-multiarch
    if [ "$purpose" = test ] || [ "$purpose" = bench ]; then
        # Guests with a root file system, and the programs in it.
        has mmdebstrap || need mmdebstrap 'mmdebstrap'
        has qemu-img || need qemu-utils "QEMU's tools (qemu-img)"
        has mke2fs || [ -x /usr/sbin/mke2fs ] || need e2fsprogs 'e2fsprogs (mke2fs)'
        has gcc || need gcc 'gcc'
        has g++ || need g++ 'g++ and the headers of the C library'
    fi
    [ "$purpose" = demo ] || has shellcheck || need shellcheck 'shellcheck'
    if [ "$purpose" = test ]; then
        has node || need nodejs 'Node.js (node)'
        has npm || need npm 'npm'
        has cpio || need cpio 'cpio'
        has make || need make 'make'
        has lz4 || need lz4 'lz4'
        has zstd || need zstd 'zstd'
        has lzop || need lzop 'lzop'
        has qemu-img || need qemu-utils 'qemu-img and qemu-nbd'
        has_tool mke2fs || need e2fsprogs 'e2fsprogs (mke2fs, debugfs)'
        # A test of a file system whose tools are not there is skipped, with the reason.
        has_tool mkfs.xfs || optional="$optional xfsprogs"
        has_tool mkfs.btrfs || optional="$optional btrfs-progs"
        has mksquashfs || optional="$optional squashfs-tools"
        has_tool mkfs.vfat || optional="$optional dosfstools"
        has mcopy || optional="$optional mtools"
        # Guests of other architectures: their tests skip themselves, with the reason.
        has qemu-system-aarch64 || optional="$optional qemu-system-arm"
        has qemu-system-ppc64 || optional="$optional qemu-system-ppc"
        has qemu-system-mips64el || optional="$optional qemu-system-mips"
        has qemu-system-riscv64 || optional="$optional qemu-system-misc"
        has qemu-system-sparc64 || optional="$optional qemu-system-sparc"
        [ -e /usr/share/qemu/opensbi-riscv64-generic-fw_dynamic.bin ] || optional="$optional opensbi"
        # Guests without an operating system.
        for target in aarch64-linux-gnu arm-linux-gnueabihf riscv64-linux-gnu powerpc64-linux-gnu powerpc64le-linux-gnu \
            mips-linux-gnu mipsel-linux-gnu s390x-linux-gnu m68k-linux-gnu sparc64-linux-gnu; do
            has "$target-gcc" || optional="$optional gcc-$target"
        done
        # Boots from firmware: what disk images are made with, and firmware of other kinds than a PC's BIOS.
        has grub-mkimage || optional="$optional grub-common"
        [ -e /usr/share/ovmf/OVMF.fd ] || optional="$optional ovmf"
        [ -e /usr/share/qemu-efi-aarch64/QEMU_EFI.fd ] || optional="$optional qemu-efi-aarch64"
        [ -e /usr/lib/u-boot/qemu-riscv64_smode/u-boot.bin ] || optional="$optional u-boot-qemu"
        # Tests that compare with gdb, or record by it, skip themselves, with the reason.
        has gdb || optional="$optional gdb"
        has gdb-multiarch || optional="$optional gdb-multiarch"
        has avr-gdb || optional="$optional gdb-avr"
        has avr-gcc || optional="$optional gcc-avr"
        # Programs that read our files skip their tests too: "go tool pprof", callgrind_annotate.
        has go || optional="$optional golang-go"
        has callgrind_annotate || optional="$optional valgrind"
        has dwz || optional="$optional dwz"
        has_tool sfdisk || optional="$optional fdisk"
        # Not a package everywhere (Ubuntu has it as a snap only): the test of the SVG skips itself, with the reason.
        has chromium || has chromium-browser || has google-chrome || optional="$optional chromium"
        has chromedriver || optional="$optional chromium-driver"
    fi
}

has_candidate() { LC_ALL=C apt-cache policy "$1" 2>/dev/null | grep -q 'Candidate: [^(]'; }

install() {
    say "installing:$1"
    # Word splitting is meant: a list of package names.
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends $1 >/dev/null
}

look
if [ -n "$missing$optional" ] && has apt-get; then
    as_root=''
    if [ "$(id -u)" -ne 0 ]; then
        if has sudo; then
            as_root=sudo
        elif [ -n "$missing" ]; then
            fail "packages are missing and this is neither root nor is there sudo; as root: apt-get install$missing$optional"
        fi
    fi
    if [ -n "$missing" ] || [ "$(id -u)" -eq 0 ] || [ -n "$as_root" ]; then
        for package in $missing $optional; do
            has_candidate "$package" && continue
            say 'fetching the package lists (apt-get update)'
            $as_root apt-get -qq update
            break
        done
        available="$missing"
        for package in $optional; do
            if has_candidate "$package"; then
                available="$available $package"
            else
                say "this machine's archive has no $package: the tests that need it will be skipped"
            fi
        done
        if [ -n "$available" ] && ! install "$available"; then
            say 'that failed; once more with fresh package lists'
            $as_root apt-get -qq update
            install "$available" || fail "apt-get could not install:$available"
        fi
    fi
    look
fi
if [ -n "$missing" ]; then
    if has apt-get; then
        say "this release's packages do not suffice; still needed:$wanted"
    else
        say "this is neither Debian nor Ubuntu; install with this distribution's package manager:$wanted"
    fi
    fail "then run make $purpose again"
fi

python=$(find_python)
if [ -x .venv/bin/python ] && ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    say 'the Python of .venv is gone or too old: making it anew'
    rm -rf .venv
fi
if [ ! -x .venv/bin/python ]; then
    say "making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi

case $purpose in
demo) extras='' ;;
*) extras='[test,lint]' ;;
esac
# A copy of what was installed from, so that a change is noticed.
stamp=.venv/.installed$extras
if ! cmp -s pyproject.toml "$stamp"; then
    say 'installing Python packages into .venv'
    .venv/bin/python -m pip --disable-pip-version-check install --quiet --editable ".$extras"
    cp pyproject.toml "$stamp"
fi

if [ "$purpose" = test ] && [ -e tests/js/package.json ]; then
    stamp=tests/js/node_modules/.installed
    if ! cmp -s tests/js/package.json "$stamp"; then
        say 'installing npm packages into tests/js/node_modules'
        (cd tests/js && npm install --no-package-lock --no-audit --no-fund --loglevel=error >/dev/null)
        cp tests/js/package.json "$stamp"
    fi
fi
