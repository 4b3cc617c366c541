"""``guestprof symbolize``: names, source lines and inlined functions of an old recording, by files of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import click

from guest.debuginfod import Debuginfod
from guest.elf.source_cache import SourceCache
from guest.host_files import HostFiles, HostFinder
from guest.symbolize import Symbolized, symbolize
from guestprof.options import host_file_options
from recording.errors import BadImageError
from recording.reader import Recording


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


def run_symbolize(path: Path, host_files: HostFiles, *, quiet: bool) -> list[Symbolized]:
    """Symbolize a recording and say what came of it. Raises BadImageError where ``--vmlinux`` is not of the guest's kernel."""

    def say(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    cache = SourceCache.of_user()

    def finder_of(recording: Recording) -> HostFinder:
        release = recording.meta.get("kernel_release")
        return HostFinder(host_files, cache, Debuginfod(os.environ, say), release=release if isinstance(release, str) else None)

    done = symbolize(path, finder_of, cache, say)
    for each in done:
        lines = f"lines of {each.with_lines:,} of {each.addresses:,} addresses, {each.inlined:,} inlined frames"
        say(f"{each.image}: {lines}, from {each.file}")
    return done
