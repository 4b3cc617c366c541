"""Finished bytes go to a file or to standard output; no existing file is replaced unasked."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from recording.errors import GuestprofError


def write_output(path: Path, data: bytes, *, force: bool) -> None:
    """Write the whole of ``data``, ``-`` being standard output, and say where. Raises GuestprofError where that cannot be done."""
    if str(path) == "-":
        sys.stdout.buffer.write(data)
        return
    try:
        with path.open("wb" if force else "xb") as file:
            file.write(data)
    except FileExistsError as error:
        raise GuestprofError(f"{path} exists; give --force to replace it, or another file with -o") from error
    except OSError as error:
        raise GuestprofError(f"cannot write {path}: {error.strerror}; make room or choose another file with -o") from error
    click.echo(f"Wrote {path}", err=True)
