#!/bin/sh
# Boot one guest under KVM and under TCG, in turn: which phases and which functions differ, and what only one of them runs.
#   examples/kvm_against_tcg.sh -m 1G -nographic -drive file=disk.qcow2,if=virtio,snapshot=on
#   RUNS=5 UNTIL='Memory:' examples/kvm_against_tcg.sh -m 1G -nographic -kernel vmlinuz -append console=ttyS0
set -eu
guestprof compare -F "${HZ:-200}" -d 600 --runs "${RUNS:-3}" --until-console "${UNTIL:-login:}" -o accelerators.html --force \
    --accel kvm --accel tcg -- "${QEMU:-qemu-system-x86_64}" "$@"
