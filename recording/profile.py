"""A recording and a selection become named, counted stacks, and each vCPU's time line.

Samples are counted by callchain inside SQLite first and named afterwards, so that a million samples take seconds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from recording.errors import BadRecordingError
from recording.guest_clock import GuestClocks
from recording.idle import is_idle
from recording.model import Callchain, Context, Event, Frame, FrameKind, Image, Space, StackEnd, SystemCall, Task, UserEnd
from recording.names import Function, NamedFrame, Namer
from recording.processes import FIRMWARE, NO_TASKS, Owner, process_of, thread_of, why_no_tasks
from recording.processes import UNKNOWN as UNKNOWN_OWNER
from recording.quality import Quality, Tally, measure_quality
from recording.reader import Recording, Selection
from recording.stack_filter import StackFilter
from recording.vcpu_line import VcpuLine

UNREADABLE_FILE = "file-unreadable"
"""The kind of events which say that a file of user code could not be read, and why."""
KERNEL_FOUND = "kernel-found"
"""The kind of event with which a kernel begins."""
CONSOLE = "console"
"""The kind of events that are lines of the guest's console."""
UNKNOWN = "unknown"
"""The kind of events which say what cannot be known of a kernel."""
_WITHOUT_CONTEXT = {StackEnd.USER_MODE: Context.USER, StackEnd.FIRMWARE: Context.FIRMWARE}
_BEFORE_KERNEL = frozenset({StackEnd.FIRMWARE, StackEnd.NO_KERNEL})
_What = tuple[int, int, int | None, int | None, int | None]
"""Callchain, boot, task, context and system call of a sample, by their ids."""
_T = TypeVar("_T")
_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """A distinct stack with names, root first, and why its kernel part and its user part end. Equal ones are one object.

    indexes: the place of each function in ``Profile.functions``, for those who count many.
    """

    functions: tuple[Function, ...]
    indexes: tuple[int, ...]
    end: StackEnd
    user_end: UserEnd | None
    idle: bool


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose time a sample is and what the vCPU was doing.

    is_firmware: it ran code from before the kernel. nobody: what stands for the task where none is known.
    """

    task: Task | None
    context: Context
    system_call: SystemCall | None
    is_firmware: bool
    nobody: Owner = UNKNOWN_OWNER

    @property
    def process(self) -> Owner:
        """The process, or what stands for it."""
        return self.nobody if self.task is None else process_of(self.task)

    @property
    def thread(self) -> Owner:
        """The thread, or what stands for it."""
        return self.nobody if self.task is None else thread_of(self.task)


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """A callchain as it was walked in one boot; those that read the same share a stack. Equal ones are one object."""

    callchain: Callchain
    boot: int
    stack: Stack


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the guest's code a frame stands, for formats that have addresses.

    function: its place in ``Profile.functions``.
    pc, lookup_pc: see ``Frame``, 0 where no frame was kept. offset: of pc from the function's start, None where that is not known.
    image: None where no image is known. path, line: in the source, None where that is not known.
    """

    function: int
    pc: int
    lookup_pc: int
    offset: int | None
    image: Image | None
    path: str | None = None
    line: int | None = None


class Count(NamedTuple):
    """How often a stack was seen on a vCPU, and the guest running time it stands for.

    first, last: the halts between which that was.
    A tuple, as there may be a million of them: making a frozen dataclass takes several times as long.
    """

    stack: Stack
    origin: Origin
    vcpu: int
    samples: int
    weight_ns: int
    walk: Walk
    first: int
    last: int


class Sighting(NamedTuple):
    """One selected sample. time_ns: guest running time since the recording's start, at its halt."""

    walk: Walk
    origin: Origin
    vcpu: int
    time_ns: int
    weight_ns: int


class Appearance(NamedTuple):
    """When a stack of one origin was seen on a vCPU. Times are guest running time since the recording's start.

    before_ns: of the last halt before the first one, None where the first halt is the first of all that are selected.
    """

    walk: Walk
    origin: Origin
    vcpu: int
    samples: int
    weight_ns: int
    first_ns: int
    last_ns: int
    before_ns: int | None


class Batch(NamedTuple):
    """Some selected samples, by columns: for those who look at a million of them.

    values: what stands for walk and origin together, as who asks has them. times_ns, weights_ns: see ``Sighting``.
    """

    values: Sequence[Any]
    vcpus: Sequence[int]
    times_ns: Sequence[int]
    weights_ns: Sequence[int]


class Stretch(NamedTuple):
    """Some selected samples of one vCPU that follow each other, by columns as those of ``Batch``."""

    vcpu: int
    values: Sequence[Any]
    times_ns: Sequence[int]
    weights_ns: Sequence[int]


class _Answers(dict[_K, _V]):
    """What a function gives, asked once for each key."""

    def __init__(self, ask: Callable[[_K], _V]) -> None:
        super().__init__()
        self._ask = ask

    def __missing__(self, key: _K) -> _V:
        value = self[key] = self._ask(key)
        return value


class Moment(NamedTuple):
    """One sample on a vCPU's time line (a tuple as ``Count`` is).

    stack, origin: None where the vCPU was not sampled, or the sample is not selected.
    start_ns: guest running time since the first moment of all vCPUs.
    """

    stack: Stack | None
    origin: Origin | None
    start_ns: int
    duration_ns: int


class Profile:
    """The selected samples of a recording, named. The recording must stay open while this is read."""

    def __init__(self, recording: Recording, selection: Selection | None = None) -> None:
        """Raises BadRecordingError where the recording is damaged."""
        self.selection = Selection() if selection is None else selection
        self.meta: dict[str, Any] = recording.meta
        self._recording = recording
        self._callchains = recording.callchains()
        self._tasks, self._contexts, self._system_calls = recording.tasks(), recording.contexts(), recording.system_calls()
        self.images = recording.images()
        self.has_lines = recording.has_source_lines
        """Whether debug information told of source lines."""
        self._namer = Namer(self.images, recording.source_lines())
        self._namer.prepare(recording.frames().values())
        self._frame_indexes: dict[int, dict[int, tuple[int, ...]]] = {}
        self._function_indexes: dict[Function, int] = {}
        self._walks: dict[tuple[int, int, Stack], Walk] = {}
        self._stacks: dict[tuple[int, int, int | None], Stack] = {}
        self._resolved = _Answers(self._resolve)
        self._interned: dict[tuple[str, str | None, bool, tuple[int, ...]], Stack] = {}
        self._origins: dict[tuple[int | None, Context, int | None, bool], Origin] = {}
        self._places: dict[tuple[int, int], tuple[Place, ...]] = {}
        self._appearances: list[Appearance] | None = None
        self.functions: list[Function] = []
        """Every function that was named so far."""
        self._filter = StackFilter(self.selection, self.functions)
        self.counts = list(self._counted())
        """By vCPU, boot, callchain, task, context and system call: one stack may have several counts."""
        self.samples = sum(count.samples for count in self.counts)
        self.weight_ns = sum(count.weight_ns for count in self.counts)
        self.vcpus = sorted({count.vcpu for count in self.counts})

    def _counted(self) -> Iterator[Count]:
        resolved = self._resolved
        for callchain, boot, vcpu, samples, weight_ns, task, context, call, *halts in self._recording.stack_totals(self.selection):
            found = resolved[callchain, boot, task, context, call]
            if found is not None:
                walk, origin = found
                yield Count(walk.stack, origin, vcpu, samples, weight_ns, walk, *halts)

    @property
    def has_tasks(self) -> bool:
        """Whether any selected sample has a task; early recordings, and those of guests without BTF, have none."""
        return any(count.origin.task is not None for count in self.counts)

    @property
    def no_tasks(self) -> str | None:
        """Why samples of this recording can have no tasks, None where they can."""
        return why_no_tasks(self.meta)

    def quality(self) -> Quality:
        """How far the recording can be trusted, of the selected samples."""
        tally = Tally(has_tasks=bool(self._contexts), no_tasks=self.no_tasks)
        for count in self.counts:
            tally.add(count.stack.end, count.stack.user_end, count.samples, has_task=count.origin.task is not None)
        return measure_quality(self._recording.halts(self.selection), tally, self.meta.get("requested_hz"))

    def unreadable_files(self) -> list[str]:
        """A sentence for each file of user code that could not be read, in the order in which that was found."""
        return list(dict.fromkeys(event.text for event in self._recording.events() if event.kind == UNREADABLE_FILE))

    def unknown(self) -> list[str]:
        """A sentence for each kernel of which something cannot be known: what that is, as it was known last."""
        kernels: list[str | None] = [None]
        for event in self._recording.events():
            if event.kind == UNKNOWN:
                kernels[-1] = event.text
            elif event.kind == KERNEL_FOUND:
                kernels.append(None)
        return list(dict.fromkeys(text for text in kernels if text is not None))

    def timelines(self) -> Iterator[tuple[int, Iterator[Moment]]]:
        """Each vCPU with its moments in time order, which follow each other without holes."""
        for vcpu, pieces in self.courses(lambda walk, origin: (walk.stack, origin)):
            yield vcpu, (Moment._make((*(value or (None, None)), *times)) for value, *times in pieces)

    def courses(self, value_of: Callable[[Walk, Origin], object]) -> Iterator[tuple[int, Iterator[tuple[Any, int, int]]]]:
        """What ``timelines`` gives, with a value for stack and origin; ``value_of`` is asked once for each of these."""
        lines: dict[int, VcpuLine] = {}
        for vcpu, values, times_ns, weights_ns in _by_vcpu(self._batches(value_of)):
            line = lines.setdefault(vcpu, VcpuLine())
            line.values.extend(values)
            line.times_ns.extend(times_ns)
            line.weights_ns.extend(weights_ns)
        start_ns = self._recording.timeline_start(self.selection)
        for vcpu in sorted(lines):
            yield vcpu, lines[vcpu].pieces(start_ns)

    def sightings(self) -> Iterator[Sighting]:
        """Every selected sample in time order, and by vCPU within a halt."""
        for values, *columns in self.batches(lambda walk, origin: (walk, origin)):
            for (walk, origin), vcpu, time_ns, weight_ns in zip(values, *columns, strict=True):
                yield Sighting(walk, origin, vcpu, time_ns, weight_ns)

    def batches(self, value_of: Callable[[Walk, Origin], object]) -> Iterator[Batch]:
        """Every selected sample in time order, and by vCPU within a halt; ``value_of`` is asked once for each walk and origin."""
        for batch in self._batches(value_of):
            chosen = [value is not None for value in batch.values]
            yield batch if all(chosen) else Batch(*[list(compress(column, chosen)) for column in batch])

    def stretches(self, value_of: Callable[[Walk, Origin], object]) -> Iterator[Stretch]:
        """What ``batches`` gives, with the samples of a batch by vCPU."""
        yield from _by_vcpu(self.batches(value_of))

    def _batches(self, value_of: Callable[[Walk, Origin], object]) -> Iterator[Batch]:
        """With None for samples that are not selected."""

        def value(what: _What) -> object:
            found = self._resolved[what]
            return None if found is None else value_of(*found)

        values = _Answers(value)
        for vcpus, times_ns, weights_ns, *what in self._recording.sightings(self.selection):
            yield Batch(list(map(values.__getitem__, zip(*what, strict=True))), vcpus, times_ns, weights_ns)

    def appearances(self) -> list[Appearance]:
        """When each selected stack was seen first and last, in the order of the first time."""
        if self._appearances is None:
            self._appearances = list(self._find_appearances())
        return self._appearances

    def _find_appearances(self) -> Iterator[Appearance]:
        times_ns = self._recording.halt_times(self.selection)
        for count in sorted(self.counts, key=attrgetter("first", "vcpu")):
            _, origin, vcpu, samples, weight_ns, walk, first, last = count
            first_ns, last_ns = (self._looked_up(times_ns, halt, "halt") for halt in (first, last))
            yield Appearance(walk, origin, vcpu, samples, weight_ns, first_ns, last_ns, times_ns.get(first - 1))

    def unselected(self) -> Profile:
        """All of the recording: this very profile where nothing is left out."""
        return self if self.selection == Selection() else Profile(self._recording)

    def clocks(self) -> GuestClocks:
        """The guest's own clocks in the whole recording."""
        return GuestClocks.of(self._recording)

    def halt_times(self) -> list[int]:
        """The guest running time of each halt within the selected time, in nanoseconds since the recording's start."""
        return list(self._recording.halt_times(self.selection).values())

    @property
    def begins_with_machine(self) -> bool:
        """Whether the recording's first sample is of code from before the kernel: it is of a boot from its start."""
        columns = next(self._recording.sightings(Selection()), None)
        return columns is not None and self._looked_up(self._callchains, columns[3][0], "callchain").end in _BEFORE_KERNEL

    def places(self, walk: Walk) -> tuple[Place, ...]:
        """Where the frames of a walk stand, root first, one for each function of its stack; equal ones are one object."""
        return tuple(chain.from_iterable(self.frame_places(walk)))

    def frame_places(self, walk: Walk) -> list[tuple[Place, ...]]:
        """The same by frames: the function of each, then those that are inlined there, innermost last."""
        if not walk.callchain.frames:
            (index,) = walk.stack.indexes
            return [self._places.setdefault((-1 - index, 0), (Place(index, 0, 0, None, None),))]
        return [self._places_of(frame, walk.boot) for frame in reversed(walk.callchain.frames)]

    @property
    def has_inlined(self) -> bool:
        """Whether functions that are inlined are frames of their own in it."""
        return self.has_lines and self.selection.inlined

    def events(self) -> list[Event]:
        """What happened within the selected time, in the order in which it was noticed, without the console."""
        return [event for event in self._selected_events() if event.kind != CONSOLE]

    def console(self) -> list[Event]:
        """The lines of the guest's console within the selected time."""
        return [event for event in self._selected_events() if event.kind == CONSOLE]

    def _selected_events(self) -> Iterator[Event]:
        since_ns, until_ns = self.selection.since_ns, self.selection.until_ns
        for event in self._recording.events():
            if (since_ns is None or event.running_time_ns >= since_ns) and (until_ns is None or event.running_time_ns < until_ns):
                yield event

    def _resolve(self, what: _What) -> tuple[Walk, Origin] | None:
        """A sample's walk and origin, None where it is not selected."""
        callchain, boot, task, context, call = what
        stack = self._stack(callchain, boot, context)
        origin = self._origin(stack, task, context, call)
        if not self._is_selected(stack, origin):
            return None
        key = (callchain, boot, stack)
        walk = self._walks.get(key)
        if walk is None:
            walk = self._walks[key] = Walk(self._callchains[callchain], boot, stack)
        return walk, origin

    def _is_selected(self, stack: Stack, origin: Origin) -> bool:
        wanted = self.selection
        if (stack.idle and not wanted.idle) or (wanted.contexts is not None and origin.context not in wanted.contexts):
            return False
        if not self._filter.lets_through(stack.indexes):
            return False
        if wanted.processes is None:
            return True
        process = origin.process
        words = {process.name, process.root_name}
        return bool((words if process.pid is None else words | {str(process.pid)}) & wanted.processes)

    def _looked_up(self, rows: Mapping[int, _T], index: int, what: str) -> _T:
        found = rows.get(index)
        if found is None:
            raise BadRecordingError(f"{self._recording.path} is damaged (no {what} {index}); record again")
        return found

    def _origin(self, stack: Stack, task: int | None, context: int | None, call: int | None) -> Origin:
        known = Context.UNKNOWN if context is None else self._looked_up(self._contexts, context, "context")
        if known is Context.UNKNOWN:
            known = Context.IDLE if stack.idle else _WITHOUT_CONTEXT.get(stack.end, known)
        key = (task, known, call, stack.end is StackEnd.FIRMWARE)
        origin = self._origins.get(key)
        if origin is None:
            nobody = FIRMWARE if key[3] else UNKNOWN_OWNER if self.no_tasks is None else NO_TASKS
            origin = self._origins[key] = Origin(
                None if task is None else self._looked_up(self._tasks, task, "task"),
                known,
                None if call is None else self._looked_up(self._system_calls, call, "system call"),
                key[3],
                nobody,
            )
        return origin

    def _places_of(self, frame: Frame, boot: int) -> tuple[Place, ...]:
        key = (id(frame), boot)
        known = self._places.get(key)
        if known is None:
            image = self._namer.image(frame, boot)
            known = self._places[key] = tuple(
                [
                    Place(index, frame.pc, frame.lookup_pc, named.offset, image, named.path, named.line)
                    for index, named in zip(self._frame_functions(frame, boot), self._named_frames(frame, boot), strict=True)
                ]
            )
        return known

    def _named_frames(self, frame: Frame, boot: int) -> tuple[NamedFrame, ...]:
        names = self._namer.names(frame, boot)
        return names if self.selection.inlined else names[:1]

    def _stack(self, callchain: int, boot: int, context: int | None) -> Stack:
        """Callchains that read the same once they are named are one stack."""
        key = (callchain, boot, context)
        known = self._stacks.get(key)
        if known is None:
            told = Context.UNKNOWN if context is None else self._looked_up(self._contexts, context, "context")
            known = self._stacks[key] = self._named(self._looked_up(self._callchains, callchain, "callchain"), boot, told)
        return known

    def _named(self, callchain: Callchain, boot: int, context: Context) -> Stack:
        # Callchains share their frames, and hashing a frame takes longer than all else here.
        places = self._frame_indexes.setdefault(boot, {})
        parts = [places.get(id(frame), ()) for frame in reversed(callchain.frames)]
        if () in parts:
            parts = [self._frame_functions(frame, boot) for frame in reversed(callchain.frames)]
        indexes = tuple(chain.from_iterable(parts))
        if not indexes:
            # A walk that kept no frame still was a sample: it is shown by the reason of its end.
            indexes = (self._function_index(Function(f"[{callchain.end.value}]", "[unknown]", FrameKind.UNKNOWN)),)
        functions = tuple([self.functions[index] for index in indexes])
        idle = (
            is_idle([function for function in functions if not function.is_inlined])
            if context is Context.UNKNOWN
            else context is Context.IDLE
        )
        key = (callchain.end.value, callchain.user_end, idle, indexes)
        known = self._interned.get(key)
        if known is None:
            known = self._interned[key] = Stack(functions, indexes, callchain.end, callchain.user_end, idle)
        return known

    def _frame_functions(self, frame: Frame, boot: int) -> tuple[int, ...]:
        """The places of a frame's function, and of those that are inlined there, innermost last."""
        of_boot = self._frame_indexes.setdefault(boot, {})
        known = of_boot.get(id(frame))
        if known is None:
            functions = [named.function for named in self._named_frames(frame, boot)]
            if frame.guess and frame.space is Space.KERNEL:
                # As the kernel's own stack dumps mark such.
                functions = [replace(function, name=f"? {function.name}") for function in functions]
            known = of_boot[id(frame)] = tuple(map(self._function_index, functions))
        return known

    def _function_index(self, function: Function) -> int:
        known = self._function_indexes.setdefault(function, len(self.functions))
        if known == len(self.functions):
            self.functions.append(function)
        return known


def _by_vcpu(batches: Iterable[Batch]) -> Iterator[Stretch]:
    """The samples of each batch by vCPU."""
    for batch in batches:
        order = sorted(range(len(batch.vcpus)), key=batch.vcpus.__getitem__)
        values, vcpus, times_ns, weights_ns = (list(map(column.__getitem__, order)) for column in batch)
        begin = 0
        while begin < len(order):
            end = bisect_right(vcpus, vcpus[begin], begin)
            yield Stretch(vcpus[begin], values[begin:end], times_ns[begin:end], weights_ns[begin:end])
            begin = end
