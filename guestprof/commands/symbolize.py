"""``guestprof symbolize``: names, source lines and inlined functions of an old recording, by files of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import click

from guest.host_files import HostFiles
from guestprof.options import host_file_options
from guestprof.symbolizing import run_symbolize
from recording.errors import BadImageError


@click.command("symbolize")
@click.argument("file", type=click.Path(path_type=Path))
@host_file_options
@click.option("-q", "--quiet", is_flag=True, help="Say nothing of what was found.")
def symbolize_command(*, file: Path, host_files: HostFiles, quiet: bool) -> None:
    """Put into a recording what files of this machine say of its code: source lines, inlined functions, names that it lacks.

    The samples stay as they are. Doing it again replaces what was there. Reports and exports then show inlined functions as
    frames of their own (--no-inlined shows them as before).
    """
    if host_files.is_empty and not os.environ.get("DEBUGINFOD_URLS"):
        raise click.UsageError("name files to learn from: --vmlinux, --symbol-dir, or servers in DEBUGINFOD_URLS")
    done = run_symbolize(file, host_files, quiet=quiet)
    if not done:
        raise BadImageError(f"no file was found for any code that {file} has samples of; look at --vmlinux and --symbol-dir")
