#!/bin/sh
# Attach to a running guest, record, and look at the result.
#   examples/profile_running_guest.sh unix:/run/gdb.sock 10
#   examples/profile_running_guest.sh 127.0.0.1:1234
# Start QEMU with "-gdb tcp:127.0.0.1:1234" for the second; the guest needs nothing.
set -eu
address=${1:?usage: profile_running_guest.sh HOST:PORT|unix:PATH [SECONDS]}
seconds=${2:-10}

guestprof record --connect "$address" -d "$seconds" -o guest.guestprof --force
guestprof report guest.guestprof --sort total -n 10
guestprof export guest.guestprof -f flamegraph -o guest.svg --force
guestprof export guest.guestprof -f speedscope -o guest.speedscope.json --force
