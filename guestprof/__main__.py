"""``python -m guestprof`` and the ``guestprof`` program."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line and leave with its exit status."""
    # Loading the program takes a moment in which there is nothing to clean up: Ctrl-C then just ends it, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from guestprof.cli import run  # noqa: PLC0415

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
