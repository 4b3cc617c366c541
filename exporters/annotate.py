"""Where in a function its time was spent becomes lines of text or JSON: by source line, or by instruction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from exporters.paint import PLAIN, Paint
from exporters.text import counted, duration, encodable, percent, printable, share, shortened
from recording.annotation import Annotation, SpotTotal

BLOCKS = (
    "QEMU translated this guest's code (TCG) and halts it between translation blocks, so that samples of code that runs fall "
    "on the first instruction of a block and stand for all of it; calls are where they are."
)
_AROUND = 3
"""Lines or instructions that are shown around one with samples."""
_TEXT_WIDTH = 140


@dataclass(frozen=True, slots=True)
class Instruction:
    """One of the function's, in the image's addresses."""

    address: int
    size: int
    text: str


Source = Callable[[str], "Sequence[str] | None"]
"""The lines of a source file by its path, None where it is not here."""


def export_annotation_text(
    found: Annotation, source: Source, code: Mapping[int, Sequence[Instruction]], paint: Paint = PLAIN
) -> bytes:
    """code: instructions of a function by an address in it that samples have; what is not there is shown by address alone."""
    took = f"{percent(share(found.total_ns, found.weight_ns), 2)} of the time, {duration(found.total_ns)}"
    where = f" in {printable(found.module)}" if found.module else ""
    own = f"{duration(found.self_ns)} in itself"
    lines = [f"{printable(found.function)}{where}: {took}, {own}, {counted(found.samples, 'sample')}"]
    lines += [f"note: {BLOCKS}"] if found.falls_on_blocks else []
    lines.append(f"{'self %':>8}  {'total %':>8}  {'total time':>10}  {'samples':>8}  {'line' if found.by_line else 'address'}")
    body = _by_line(found, source) if found.by_line else _by_address(found, code)
    for row, what in body:
        lines.append((_figures(row, found, paint) + what).rstrip())
    return ("\n".join(lines) + "\n").encode()


def _figures(row: SpotTotal | None, found: Annotation, paint: Paint) -> str:
    if row is None:
        return " " * (8 + 2 + 8 + 2 + 10 + 2 + 8 + 2)
    shares = [share(value, found.total_ns) for value in (row.self_ns, row.total_ns)]
    own, total = (paint.share(f"{percent(value, 2):>8}", value) for value in shares)
    return f"{own}  {total}  {duration(row.total_ns):>10}  {row.samples:>8,}  "


def _by_line(found: Annotation, source: Source) -> list[tuple[SpotTotal | None, str]]:
    rows: list[tuple[SpotTotal | None, str]] = []
    by_path: dict[str | None, dict[int, SpotTotal]] = {}
    for row in found.rows:
        by_path.setdefault(row.spot.path, {})[row.spot.line or 0] = row
    for path, of_path in by_path.items():
        text = None if path is None else source(path)
        rows.append((None, printable(path) if path is not None else "[no line]"))
        last = 0
        for line in sorted(of_path):
            if text is None or not 0 < line <= len(text):
                rows.append((of_path[line], f"{line:>6}" if line else "     ?"))
                continue
            shown = range(max(1, last + 1, line - _AROUND), min(len(text), line + _AROUND) + 1)
            if last and shown and shown[0] > last + 1:
                rows.append((None, "     …"))
            rows += [(of_path.get(each), f"{each:>6}  {_code(text[each - 1])}") for each in shown]
            last = max(last, shown[-1] if shown else last)
    return rows


def _code(text: str) -> str:
    return shortened(printable(text.expandtabs(8).rstrip()), _TEXT_WIDTH)


def _by_address(found: Annotation, code: Mapping[int, Sequence[Instruction]]) -> list[tuple[SpotTotal | None, str]]:
    rows: list[tuple[SpotTotal | None, str]] = []
    lists: dict[int, tuple[Sequence[Instruction], list[SpotTotal]]] = {}
    for row in found.rows:
        known = code.get(row.spot.address)
        if known is None or _index(known, row.spot.address) < 0:
            offset = "" if row.spot.offset is None else f"  +{row.spot.offset:#x}"
            rows.append((row, f"{row.spot.address:#x}{offset}"))
        else:
            lists.setdefault(id(known), (known, []))[1].append(row)
    for instructions, with_samples in lists.values():
        at = {_index(instructions, row.spot.address): row for row in with_samples}
        shown = sorted(
            {near for index in at for near in range(index - _AROUND, index + _AROUND + 1) if 0 <= near < len(instructions)}
        )
        for before, index in zip([shown[0] - 1, *shown], shown, strict=False):
            if index > before + 1:
                rows.append((None, "…"))
            each = instructions[index]
            rows.append((at.get(index), f"{each.address:#x}  {shortened(printable(each.text), _TEXT_WIDTH)}"))
    return rows


def _index(instructions: Sequence[Instruction], address: int) -> int:
    """The instruction that holds an address: a caller's is one below that to which the call returns."""
    return next((index for index, each in enumerate(instructions) if each.address <= address < each.address + each.size), -1)


def export_annotation_json(found: Annotation, source: Source, code: Mapping[int, Sequence[Instruction]]) -> bytes:
    """``{"function", "module", "kind", "by", ..., "rows"}``; rows without samples are not in it."""
    rows: list[dict[str, Any]] = []
    for row in found.rows:
        text = None
        if found.by_line:
            lines = None if row.spot.path is None else source(row.spot.path)
            text = lines[row.spot.line - 1] if lines and row.spot.line and row.spot.line <= len(lines) else None
        else:
            known = code.get(row.spot.address, ())
            index = _index(known, row.spot.address)
            text = known[index].text if index >= 0 else None
        place = (
            {"path": None if row.spot.path is None else encodable(row.spot.path), "line": row.spot.line}
            if found.by_line
            else {"address": f"{row.spot.address:#x}", "offset": row.spot.offset}
        )
        rows.append(
            {
                **place,
                "text": None if text is None else encodable(text),
                "self_ns": row.self_ns,
                "total_ns": row.total_ns,
                "self_share": share(row.self_ns, found.total_ns),
                "total_share": share(row.total_ns, found.total_ns),
                "samples": row.samples,
            }
        )
    document = {
        "function": encodable(found.function),
        "module": encodable(found.module),
        "kind": found.kind.value,
        "by": "line" if found.by_line else "address",
        "self_ns": found.self_ns,
        "total_ns": found.total_ns,
        "samples": found.samples,
        "note": BLOCKS if found.falls_on_blocks else None,
        "rows": rows,
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
