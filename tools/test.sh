#!/bin/sh
# All tests: those that boot real guests, and beside them, in the time in which these leave the processors idle, all others.
# Bounds of samples hold with a probability, and on a host that lets the guests run: of the tests marked as statistical, a few that
# fail are run once more, with nothing beside them, and what fails then has failed.
# Usage: tools/test.sh [PYTEST ARGS...]; with arguments, one pytest gets them.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
few=4
[ $# -eq 0 ] || exec "$python" -m pytest "$@"

# The tests with real guests that failed: "and statistical", "and not statistical".
count_failed() {
    "$python" -m pytest -m "qemu $1" --last-failed --last-failed-no-failures none --collect-only -q | grep -c '::' || true
}

said=$(mktemp)
{
    # Disk images that guests will boot are made first.
    nice -n 19 "$python" -m tests.qemu.prepare
    exec nice -n 19 "$python" -m pytest -m 'not qemu' -p no:cacheprovider
} >"$said" 2>&1 &
others=$!
trap 'kill "$others" 2>/dev/null || true; rm -f "$said"' EXIT
trap 'exit 130' INT TERM
guests=0
"$python" -m pytest -m qemu --cache-clear || guests=$?
echo 'Waiting for the tests without guests, which ran beside these.'
failed=0
wait "$others" || failed=$?
cat "$said"
if [ "$guests" -eq 1 ] && [ "$(count_failed 'and not statistical')" -eq 0 ] && [ "$(count_failed 'and statistical')" -le "$few" ]; then
    echo 'Tests of samples that failed, once more:'
    guests=0
    "$python" -m pytest -m 'qemu and statistical' --last-failed --last-failed-no-failures none || guests=$?
fi
[ "$guests" -eq 0 ] || exit "$guests"
exit "$failed"
