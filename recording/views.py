"""A profile becomes totals (by function, module, vCPU) and a call tree: pure functions, nothing here reads a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from recording.model import FrameKind
from recording.names import Function
from recording.profile import Count, Profile


@dataclass(frozen=True, slots=True)
class Total:
    """What a function, module or vCPU took.

    self_ns: while it was the innermost; total_ns, samples: while it was anywhere on the stack, recursion counted once.
    """

    name: str
    module: str
    kind: FrameKind
    self_ns: int
    total_ns: int
    samples: int


@dataclass(slots=True)
class TreeNode:
    """A function as called from one chain of callers. ``children`` by their place in ``Profile.functions``."""

    function: Function
    self_ns: int = 0
    total_ns: int = 0
    samples: int = 0
    idle_samples: int = 0
    children: dict[int, TreeNode] = field(default_factory=dict)

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
    totals = []
    for vcpu in profile.vcpus:
        counts = [count for count in profile.counts if count.vcpu == vcpu]
        weight_ns = sum(count.weight_ns for count in counts)
        samples = sum(count.samples for count in counts)
        totals.append(Total(f"vCPU {vcpu}", "", FrameKind.UNKNOWN, weight_ns, weight_ns, samples))
    return totals


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
        Total(function.name, function.module, function.kind, self_ns[index], total_ns[index], samples[index])
        for index, function in enumerate(labels)
        if samples[index]
    ]
    return sorted(totals, key=lambda total: (total.name, total.module, total.kind))


def call_tree(profile: Profile) -> TreeNode:
    """All stacks merged from their roots. The node that is returned stands for the whole profile and is called ``all``."""
    root = TreeNode(Function("all", "", FrameKind.UNKNOWN))
    for count in profile.counts:
        node = root
        _count(node, count)
        for index in count.stack.indexes:
            child = node.children.get(index)
            if child is None:
                child = node.children[index] = TreeNode(profile.functions[index])
            node = child
            _count(node, count)
        node.self_ns += count.weight_ns
    return root


def _count(node: TreeNode, count: Count) -> None:
    node.total_ns += count.weight_ns
    node.samples += count.samples
    if count.stack.idle:
        node.idle_samples += count.samples
