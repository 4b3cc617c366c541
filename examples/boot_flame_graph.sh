#!/bin/sh
# Boot a disk image (a Debian cloud image, for example) without changing it, until it asks for a login; then look at the boot.
#   examples/boot_flame_graph.sh debian-12-genericcloud-amd64.qcow2
#   UNTIL='Reached target' examples/boot_flame_graph.sh disk.raw -m 2G -smp 2
# Words behind the image are QEMU's. The image must have a console on its first serial port, as cloud images do.
set -eu
image=${1:?usage: boot_flame_graph.sh IMAGE [QEMU ARGS...]}
shift

guestprof boot -F 200 -d 600 --until-console "${UNTIL:-login:}" -o boot.guestprof --force -- \
    "${QEMU:-qemu-system-x86_64}" -m 1G -nodefaults -display none -serial stdio -snapshot \
    -drive "file=$image,if=virtio" -device virtio-rng-pci "$@"
guestprof timeline boot.guestprof --show milestones --show phases --show groups
guestprof report boot.guestprof -n 15
guestprof export boot.guestprof -f flamegraph -o boot.svg --force
guestprof export boot.guestprof -f html -o boot.html --force
