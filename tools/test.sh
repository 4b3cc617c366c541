#!/bin/sh
# All tests: those that boot real guests, and beside them, in the time in which these leave the processors idle, all others.
# Usage: tools/test.sh [PYTEST ARGS...]; with arguments, one pytest gets them.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ $# -eq 0 ] || exec "$python" -m pytest "$@"

said=$(mktemp)
{
    # Disk images that guests will boot are made first.
    nice -n 19 "$python" -m tests.qemu.prepare
    exec nice -n 19 "$python" -m pytest -m 'not qemu' -p no:cacheprovider
} >"$said" 2>&1 &
others=$!
trap 'kill "$others" 2>/dev/null || true; rm -f "$said"' EXIT
trap 'exit 130' INT TERM
failed=0
"$python" -m pytest -m qemu || failed=$?
echo 'Waiting for the tests without guests, which ran beside these.'
wait "$others" || failed=$?
cat "$said"
exit "$failed"
