#!/bin/sh
# Profile a guest that libvirt manages: open a gdb stub in its QEMU, record, close the stub again.
#   examples/libvirt_guest.sh DOMAIN [SECONDS]
#   LIBVIRT_DEFAULT_URI=qemu:///system PORT=12345 examples/libvirt_guest.sh web1 30
# The guest is neither restarted nor changed. libvirt marks the domain as tainted ("custom-monitor").
set -eu
domain=${1:?usage: libvirt_guest.sh DOMAIN [SECONDS]}
seconds=${2:-10}
port=${PORT:-12345}
monitor() { virsh qemu-monitor-command "$domain" --hmp "$1"; }

monitor "gdbserver tcp:127.0.0.1:$port"
# Whatever comes, nobody else shall find the stub open.
trap 'monitor "gdbserver none" >/dev/null' EXIT
guestprof record --connect "127.0.0.1:$port" -d "$seconds" -o "$domain.guestprof" --force
guestprof report "$domain.guestprof" -n 15
