"""``python -m guestprof`` and the ``guestprof`` program."""

from __future__ import annotations

from guestprof.cli import run


def main() -> None:
    """Run the command line and leave with its exit status."""
    run()


if __name__ == "__main__":
    main()
