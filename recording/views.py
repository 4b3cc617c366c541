"""A profile becomes totals (by function, module, process, ...) and a call tree: pure functions, nothing here reads a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from recording.collection import no_collection
from recording.model import Context, FrameKind
from recording.names import Function
from recording.processes import Owner
from recording.profile import Count, Origin, Profile, Stack
from recording.units import unit_of


@dataclass(frozen=True, slots=True)
class Total:
    """What a function, module, process and so on took.

    self_ns: while it was the innermost; total_ns, samples: while it was anywhere on the stack, recursion counted once.
    pid: the number of a process or thread. is_inlined: see ``Function``.
    """

    name: str
    module: str
    kind: FrameKind
    self_ns: int
    total_ns: int
    samples: int
    pid: int | None = None
    is_inlined: bool = False

    @property
    def label(self) -> str:
        """See ``Function``."""
        return f"{self.name} (inlined)" if self.is_inlined else self.name


@dataclass(slots=True)
class TreeNode:
    """A function as called from one chain of callers. ``children`` by their place in ``Profile.functions``.

    is_process: stands for a process at the root of its stacks; such children have numbers below 0.
    """

    function: Function
    self_ns: int = 0
    total_ns: int = 0
    samples: int = 0
    idle_samples: int = 0
    children: dict[int, TreeNode] = field(default_factory=dict)
    is_process: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether all of it is the idle loop waiting."""
        return self.samples > 0 and self.samples == self.idle_samples


def function_totals(profile: Profile) -> list[Total]:
    """What each function took, by name, module and kind."""
    return _totals(profile, lambda function: function)


def module_totals(profile: Profile) -> list[Total]:
    """What the code of each module took, by name; the name is the module's."""
    return _totals(profile, lambda function: Function(function.module, function.module, function.kind))


def vcpu_totals(profile: Profile) -> list[Total]:
    """What was sampled of each vCPU, by its number. All of it is its own."""
    return _whole_totals(profile, lambda count: count.vcpu, lambda vcpu: Owner(f"vCPU {vcpu}", None, FrameKind.UNKNOWN))


def process_totals(profile: Profile) -> list[Total]:
    """What each process took, by name and number. Kernel threads and idle tasks are processes by themselves.

    A process that changes its name (execve) is another one from then on.
    """
    return _owner_totals(profile, lambda origin: origin.process)


def thread_totals(profile: Profile) -> list[Total]:
    """What each thread took, by name and number."""
    return _owner_totals(profile, lambda origin: origin.thread)


def context_totals(profile: Profile) -> list[Total]:
    """What the vCPUs did, in the order of ``Context``."""
    order = list(Context)
    return _whole_totals(profile, lambda count: order.index(count.origin.context), lambda index: context_owner(order[index]))


def system_call_totals(profile: Profile) -> list[Total]:
    """What was spent within each system call, interrupts that hit it included; all else is not in these rows."""
    return _owner_totals(profile, system_call_owner)


def unit_totals(profile: Profile) -> list[Total]:
    """What the tasks of each of systemd's units took; ``/`` is what belongs to none, such as kernel threads and the initramfs.

    Tasks whose control group is not known are not in these rows.
    """
    return _owner_totals(profile, _unit_owner)


def _unit_owner(origin: Origin) -> Owner | None:
    path = None if origin.task is None else origin.task.cgroup
    if path is None:
        return None
    unit = unit_of(path)
    return Owner(path if unit is None else unit[0], None, FrameKind.USER)


_CONTEXT_KINDS = {Context.USER: FrameKind.USER, Context.FIRMWARE: FrameKind.FIRMWARE, Context.UNKNOWN: FrameKind.UNKNOWN}


def context_owner(context: Context) -> Owner:
    """What stands for a context in rows by these."""
    return Owner(context.value, None, _CONTEXT_KINDS.get(context, FrameKind.KERNEL))


def system_call_owner(origin: Origin) -> Owner | None:
    """What stands for a system call in rows by these; None outside of all."""
    call = origin.system_call
    return None if call is None else Owner(call.label, None, FrameKind.KERNEL)


def _owner_totals(profile: Profile, owner_of: Callable[[Origin], Owner | None]) -> list[Total]:
    owners: list[Owner] = sorted(
        {owner for origin in {count.origin for count in profile.counts} if (owner := owner_of(origin)) is not None},
        key=lambda owner: (owner.name, -1 if owner.pid is None else owner.pid, owner.kind),
    )
    place = {owner: index for index, owner in enumerate(owners)}
    places = {id(count.origin): None if (owner := owner_of(count.origin)) is None else place[owner] for count in profile.counts}
    return _whole_totals(profile, lambda count: places[id(count.origin)], lambda index: owners[index])


def _whole_totals(profile: Profile, index_of: Callable[[Count], int | None], owner_of: Callable[[int], Owner]) -> list[Total]:
    """Totals of what has whole samples, so that all of it is its own, in the order of their indexes."""
    weights: dict[int, int] = {}
    samples: dict[int, int] = {}
    for count in profile.counts:
        index = index_of(count)
        if index is not None:
            weights[index] = weights.get(index, 0) + count.weight_ns
            samples[index] = samples.get(index, 0) + count.samples
    return [
        Total((owner := owner_of(index)).name, "", owner.kind, weights[index], weights[index], samples[index], owner.pid)
        for index in sorted(weights)
    ]


def _totals(profile: Profile, label: Callable[[Function], Function]) -> list[Total]:
    labels: list[Function] = []
    known: dict[Function, int] = {}
    label_of = []
    for function in profile.functions:
        index = known.setdefault(label(function), len(labels))
        if index == len(labels):
            labels.append(label(function))
        label_of.append(index)
    self_ns, total_ns, samples = [0] * len(labels), [0] * len(labels), [0] * len(labels)
    for count in profile.counts:
        indexes = [label_of[index] for index in count.stack.indexes]
        self_ns[indexes[-1]] += count.weight_ns
        for index in set(indexes):
            total_ns[index] += count.weight_ns
            samples[index] += count.samples
    totals = [
        Total(
            *(function.name, function.module, function.kind, self_ns[index], total_ns[index], samples[index]),
            is_inlined=function.is_inlined,
        )
        for index, function in enumerate(labels)
        if samples[index]
    ]
    return sorted(totals, key=lambda total: (total.name, total.module, total.kind, total.is_inlined))


def call_tree(profile: Profile) -> TreeNode:
    """All stacks merged from their roots. The node that is returned stands for the whole profile and is called ``all``.

    Where tasks are known, its children stand for processes by name, idle tasks together being ``swapper``.
    """
    with no_collection():
        return _merged_tree(profile)


def _merged_tree(profile: Profile) -> TreeNode:
    root = TreeNode(Function("all", "", FrameKind.UNKNOWN))
    roots: dict[str, TreeNode] = {}
    for stack, process, weight_ns, samples in _by_process(profile):
        idle_samples = samples if stack.idle else 0
        path = [root]
        node = root
        if process is not None:
            found = roots.get(process.root_name)
            if found is None:
                found = roots[process.root_name] = TreeNode(Function(process.root_name, "", process.kind), is_process=True)
            node = found
            path.append(node)
        for index in stack.indexes:
            child = node.children.get(index)
            if child is None:
                child = node.children[index] = TreeNode(profile.functions[index])
            path.append(child)
            node = child
        node.self_ns += weight_ns
        for node in path:
            # A number that is not added to is shared, which saves 32 bytes for each of a million nodes.
            node.total_ns = node.total_ns + weight_ns if node.total_ns else weight_ns
            node.samples = node.samples + samples if node.samples else samples
            node.idle_samples += idle_samples
    for index, name in enumerate(sorted(roots)):
        root.children[-1 - index] = roots[name]
    return root


def _by_process(profile: Profile) -> list[tuple[Stack, Owner | None, int, int]]:
    """Each stack of each process (None where no tasks are known) with its weight and samples on all vCPUs."""
    has_tasks = profile.has_tasks
    owners = {id(origin): origin.process if has_tasks else None for origin in {count.origin for count in profile.counts}}
    merged: dict[tuple[Stack, Owner | None], tuple[int, int]] = {}
    for count in profile.counts:
        key = (count.stack, owners[id(count.origin)])
        weight_ns, samples = merged.get(key, (0, 0))
        merged[key] = (weight_ns + count.weight_ns, samples + count.samples)
    return [(stack, owner, *sums) for (stack, owner), sums in merged.items()]
