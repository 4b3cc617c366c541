"""Finished bytes go to a file or to standard output; no existing file is replaced unasked."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path

import click

from recording.errors import GuestprofError


def require_absent(path: Path) -> None:
    """Raises GuestprofError where a file is there already that nobody asked to be replaced."""
    if path.exists():
        raise GuestprofError(_exists(path))


def _exists(path: Path) -> str:
    return f"{path} exists; give --force to replace it, or another file with -o"


def write_output(path: Path, pieces: Iterable[bytes], *, force: bool) -> None:
    """Write all pieces, ``-`` being standard output, and say where. Raises GuestprofError where that cannot be done.

    Nothing is opened before there is a first piece, and a file of which a later piece cannot be made is removed.
    """
    waiting = iter(pieces)
    ready = chain(list(islice(waiting, 1)), waiting)
    if str(path) == "-":
        sys.stdout.buffer.writelines(ready)
        return
    try:
        with path.open("wb" if force else "xb") as file:
            try:
                file.writelines(ready)
            except BaseException:
                if path.is_file():
                    path.unlink()
                raise
    except FileExistsError as error:
        raise GuestprofError(_exists(path)) from error
    except OSError as error:
        raise GuestprofError(f"cannot write {path}: {error.strerror}; make room or choose another file with -o") from error
    click.echo(f"Wrote {path}", err=True)
