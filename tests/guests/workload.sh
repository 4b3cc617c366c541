#!/bin/sh
# A fixed workload for a guest, for ever. Each round prints a mark on the console.
here=/usr/local/lib/guestprof
say() { echo "guestprof: $*" >/dev/console; }

say 'debian workload'
python3 "$here/workload.py" &
# The gateway of QEMU's user network answers by itself: real packets through virtio_net.
ping -q -i 0.05 10.0.2.2 >/dev/null 2>&1 &

round=0
while :; do
    head -c 30000 /usr/bin/openssl | xz -6 >/dev/null
    openssl speed -seconds 1 -bytes 16384 sha256 >/dev/null 2>&1
    find /etc /usr/lib/x86_64-linux-gnu /usr/bin -xdev -type f -size +40k >/dev/null
    sha256sum /usr/bin/[a-e]* >/dev/null
    i=0
    while [ $i -lt 5 ]; do
        # Two processes a turn, on purpose.
        # shellcheck disable=SC2003
        /bin/true "$(expr $i + 1)"
        i=$((i + 1))
    done
    rg --count 'def [a-z]+_[a-z]+\(' /usr/lib/python3.11/json /usr/lib/python3.11/asyncio >/dev/null
    gron --no-sort "$here/workload.json" >/dev/null
    dd if=/dev/zero of=/var/tmp/copy bs=64k count=8 conv=fsync 2>/dev/null
    round=$((round + 1))
    say "round $round"
done
