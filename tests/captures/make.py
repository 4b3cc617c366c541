"""A recording made with ``record --raw`` → a fixture of this directory: its most varied captures, and the callchains they have.

    python -m tests.captures.make RECORDING NAME [--count N]

writes ``NAME.json.xz`` (format: tests/builders/captures.py) and ``NAME.txt``, a line for each capture. Look at the lines before
you commit them.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from guest.text import TextImage
from recording.errors import BadRecordingError
from recording.model import Callchain, StackEnd
from recording.reader import Recording
from sampler.replay import find_rows, kernel_symbols, to_capture
from sampler.rsp.registers import RegisterLayout
from tests.builders.captures import CaptureSet, save_captures
from unwind.arch.x86_64 import X86_64
from unwind.capture import Capture
from unwind.orc import OrcTable, OrcVersion

DIRECTORY = Path(__file__).parent
COUNT = 125


def read_captures(recording: Recording) -> CaptureSet:
    """All captures that were unwound with the last state of the kernel. Raises BadRecordingError where there are none."""
    layout = RegisterLayout.from_json(recording.meta.get("registers"))
    raws = list(recording.captures())
    last = max((raw.unwinder for raw in raws if raw.unwinder is not None), default=-1)
    data = recording.unwind_data(last)
    if data is None or data.orc is None:
        raise BadRecordingError(f"{recording.path} holds no kernel with an ORC table; record a stock kernel with --raw")
    symbols, text = kernel_symbols(recording, data.boot), TextImage(data.text)
    return CaptureSet(
        str(recording.meta["kernel_release"]),
        OrcVersion(data.orc.version),
        data.is_settled,
        data.init_text,
        text.ranges,
        symbols,
        text,
        find_rows(X86_64, data, symbols),
        tuple(to_capture(raw, layout) for raw in raws if raw.unwinder == last),
    )


def features(source: CaptureSet, capture: Capture, chain: Callchain) -> set[object]:
    """What makes a callchain unlike others: how it ends and where, its functions, unwind rows, guesses, interruptions, stacks."""
    code = X86_64.kernel_code
    leaf = chain.frames[0]
    if not chain.end.is_kernel:
        return {chain.end}
    assert isinstance(source.rows, OrcTable)
    found: set[object] = {chain.end, ("vcpu", capture.vcpu)}
    sp = capture.registers[X86_64.sp]
    for position, frame in enumerate(chain.frames):
        symbol = source.symbols.find_at(frame.lookup_pc) if source.text.contains(frame.lookup_pc) else None
        name = "" if symbol is None else symbol.name
        interrupted = frame.pc == frame.lookup_pc
        row = source.rows.find_row(frame.lookup_pc) if symbol is not None else None
        found |= {("function", name), ("row", row, interrupted)}
        if frame.guess:
            found.add(("guess", name))
        if interrupted and position:
            found.add(("interrupted", name))
        if name.startswith(code.thunks):
            found |= {("thunk", name, leaf.pc), ("thunk", name, len(found))}
        if frame is leaf:
            found |= {("leaf", name, frame.pc), ("leaf end", name, chain.end)}
    if chain.end not in (StackEnd.USER_ENTRY, StackEnd.TASK_ROOT):
        found.add(("end at", chain.end, chain.frames[-1].pc))
    stacks = {address // X86_64.stack_size for address, _data in capture.memory}
    found.add(("stacks", len(stacks), sp // X86_64.stack_size == max(stacks, default=0)))
    return found


def most_varied(candidates: Sequence[set[object]], count: int) -> list[int]:
    """Indexes of ``count`` candidates at most that together have many features: greedily, the one with the most new ones first."""
    covered: set[object] = set()
    heap = [(-len(each), index) for index, each in enumerate(candidates)]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < count:
        gain, index = heapq.heappop(heap)
        fresh = len(candidates[index] - covered)
        if fresh == 0:
            continue
        if -gain > fresh:
            heapq.heappush(heap, (-fresh, index))
            continue
        covered |= candidates[index]
        chosen.append(index)
    return sorted(chosen)


def one_of_each_end(chains: Sequence[Callchain]) -> Iterable[int]:
    """The first three captures of each way in which a stack ends."""
    seen: dict[StackEnd, int] = {}
    for index, chain in enumerate(chains):
        seen[chain.end] = seen.get(chain.end, 0) + 1
        if seen[chain.end] <= 3:
            yield index


def make(recording: Path, name: str, count: int) -> None:
    """Write one fixture."""
    with Recording.open(recording) as opened:
        source = read_captures(opened)
    unwinder = source.unwinder()
    chains = [unwinder.unwind(capture).callchain for capture in source.captures]
    candidates = [features(source, capture, chain) for capture, chain in zip(source.captures, chains, strict=True)]
    first = set(one_of_each_end(chains))
    chosen = sorted(first | set(most_varied(candidates, count - len(first))))
    kept = replace(source, captures=tuple(source.captures[index] for index in chosen))
    path = DIRECTORY / f"{name}.json.xz"
    lines = save_captures(path, kept)
    (DIRECTORY / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    print(f"{path.name}: {len(chosen)} of {len(chains)} captures of Linux {source.kernel}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("name")
    parser.add_argument("--count", type=int, default=COUNT)
    arguments = parser.parse_args()
    make(arguments.recording, arguments.name, arguments.count)
