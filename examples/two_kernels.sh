#!/bin/sh
# Boot two kernels with one initramfs, in turn: which phases of the boot and which functions differ.
#   examples/two_kernels.sh vmlinuz-old vmlinuz-new initrd.img
#   RUNS=5 UNTIL=start_kernel examples/two_kernels.sh vmlinuz-old vmlinuz-new initrd.img -m 2G
# UNTIL is the kernel function at which a boot is over; words behind the initramfs are QEMU's.
set -eu
old=${1:?usage: two_kernels.sh OLD NEW INITRAMFS [QEMU ARGS...]}
new=${2:?usage: two_kernels.sh OLD NEW INITRAMFS [QEMU ARGS...]}
initramfs=${3:?usage: two_kernels.sh OLD NEW INITRAMFS [QEMU ARGS...]}
shift 3
qemu=${QEMU:-qemu-system-x86_64}

guestprof compare -F 200 -d 600 --runs "${RUNS:-3}" --until-symbol "${UNTIL:-run_init_process}" -o kernels.txt --force \
    --with old -- "$qemu" -m 1G -nographic -kernel "$old" -initrd "$initramfs" -append console=ttyS0 "$@" \
    --with new -- "$qemu" -m 1G -nographic -kernel "$new" -initrd "$initramfs" -append console=ttyS0 "$@"
cat kernels.txt
