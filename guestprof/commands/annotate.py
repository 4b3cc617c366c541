"""``guestprof annotate``: where in a function its time was spent."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from exporters.annotate import Instruction, export_annotation_json, export_annotation_text
from exporters.paint import Paint
from guest.elf.disassembly import disassemble
from guest.elf.source_cache import SourceCache
from guest.host_files import HostFiles, HostFinder
from guestprof.commands.report import color_option, is_coloured
from guestprof.options import host_file_options
from guestprof.selection import SelectionOptions, selection_options
from guestprof.symbolizing import make_finder
from recording.annotation import Annotation, annotate
from recording.errors import BadImageError, MissingDependencyError
from recording.model import Image
from recording.profile import Profile
from recording.reader import Recording
from recording.symbols import Symbol, SymbolTable

_MAX_SOURCE = 1 << 24
_TARGET = re.compile(r"#?(0x[0-9a-f]{4,})$")


@click.command("annotate")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("function")
@click.option(
    "--by",
    type=click.Choice(["line", "address"]),
    help="Rows by source line, or by address with instructions. Default: lines where the recording has them (guestprof symbolize).",
)
@click.option(
    "--source",
    "sources",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    metavar="DIR",
    help="Where the source is: a directory below which the recorded paths, or their ends, lie. May be repeated.",
)
@host_file_options
@selection_options
@click.option("-f", "--format", "format_name", type=click.Choice(["text", "json"]), default="text", show_default=True)
@color_option
def annotate_command(
    *,
    file: Path,
    function: str,
    by: str | None,
    sources: tuple[Path, ...],
    host_files: HostFiles,
    selected: SelectionOptions,
    format_name: str,
    color: str,
) -> None:
    """Print where in FUNCTION the time was spent: by source line, or by address with the instructions of --vmlinux or --symbol-dir.

    Shares are of the function's own time. Under TCG halts fall on starts of translation blocks, which the output says.
    """
    with Recording.open(file) as recording:
        profile = Profile(recording, selected.select(recording))
        found = annotate(profile, function, by_line=None if by is None else by == "line")
        code = {} if found.by_line else _code(found, host_files, profile.meta.get("kernel_release"))
    texts: dict[str, Sequence[str] | None] = {}

    def source(path: str) -> Sequence[str] | None:
        if path not in texts:
            texts[path] = _read_source(path, sources)
        return texts[path]

    if format_name == "json":
        data = export_annotation_json(found, source, code)
    else:
        data = export_annotation_text(found, source, code, Paint(is_coloured(color)))
    sys.stdout.buffer.write(data)


def _read_source(path: str, directories: Sequence[Path]) -> list[str] | None:
    """The lines of a source file: at its own path, or by the longest end of it that lies below one of the directories."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    found = [Path(path)] if path.startswith("/") else []
    if ".." not in parts[:1]:
        found += [directory.joinpath(*parts[first:]) for first in range(len(parts)) for directory in directories]
    for each in found:
        try:
            if each.is_file() and each.stat().st_size <= _MAX_SOURCE:
                return each.read_text("utf-8", "replace").split("\n")
        except OSError:
            continue
    return None


def _code(found: Annotation, host_files: HostFiles, release: object) -> dict[int, Sequence[Instruction]]:
    """Instructions of the function by each address that samples have in it, from files of this machine where any is named."""
    if host_files.is_empty and not os.environ.get("DEBUGINFOD_URLS"):
        return {}
    finder = make_finder(host_files, SourceCache.of_user(), release, _warn)
    code: dict[int, Sequence[Instruction]] = {}
    images = {id(row.spot.image): row.spot.image for row in found.rows if row.spot.image is not None}
    for image in images.values():
        addresses = [row.spot.address for row in found.rows if row.spot.image is image]
        try:
            code |= _code_of(image, addresses, finder)
        except (BadImageError, MissingDependencyError) as error:
            _warn(str(error))
    return code


def _code_of(image: Image, addresses: Sequence[int], finder: HostFinder) -> dict[int, Sequence[Instruction]]:
    match = finder.find(image, _warn)
    if match is None or image.symbols is None:
        return {}
    lists: dict[int, Sequence[Instruction]] = {}
    code: dict[int, Sequence[Instruction]] = {}
    with match.file as file:
        for address in addresses:
            symbol, place = image.symbols.find_at(address), match.placement.to_file(address)
            if symbol is None or place is None:
                continue
            if symbol.address not in lists:
                start = place - (address - symbol.address)
                lists[symbol.address] = [
                    Instruction(each.address, each.size, _with_target(each.text, image.symbols, symbol))
                    for each in disassemble(file, start, start + symbol.size, shown=symbol.address)
                ]
            code[address] = lists[symbol.address]
    return code


def _with_target(text: str, symbols: SymbolTable, own: Symbol) -> str:
    """An instruction with the function that it leads to, if that is another one."""
    found = _TARGET.search(text)
    target = None if found is None else symbols.find_at(int(found[1], 16))
    if found is None or target is None or target.address != int(found[1], 16) or target == own:
        return text
    return f"{text} <{target.name}>"


def _warn(line: str) -> None:
    click.echo(f"guestprof: {line}", err=True)
