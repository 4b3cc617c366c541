"""The architecture as rules that a program checks: who imports whom, where third parties may be, no question about CPUs."""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("sampler", "unwind", "guest", "recording", "exporters", "guestprof")

MAY_IMPORT = {
    "recording": set(),
    "unwind": {"recording"},
    "guest": {"recording", "unwind"},
    "sampler": {"recording", "unwind", "guest"},
    "exporters": {"recording"},
    "guestprof": {"recording", "unwind", "guest", "sampler", "exporters"},
}

FENCES = {
    "elftools": ("guest/elf",),
    "orjson": ("recording/store", "exporters/"),
    "click": ("guestprof/",),
    "cxxfilt": ("recording/demangle_worker",),
    "rust_demangler": ("recording/demangle_worker",),
    "rich": ("guestprof/",),
    "platformdirs": ("guestprof/", "guest/cache"),
    "dissect": ("guest/storage/",),
    "lz4": ("guest/unpack",),
    "lzallright": ("guest/unpack",),
    "capstone": ("guest/elf/disassembly",),
    "psutil": ("sampler/",),
    "pygdbmi": ("sampler/gdb/mi",),
    "qemu": ("sampler/",),
    "defusedxml": ("sampler/rsp/",),
}
"""Third-party package -> beginnings of the paths that may import it; a package that is not listed may not be imported at all."""

ARCHITECTURES = {
    *(
        "x86_64",
        "x86-64",
        "amd64",
        "i386",
        "x86",
        "aarch64",
        "arm64",
        "arm",
        "armhf",
        "riscv64",
        "riscv",
        "ppc64",
        "ppc64le",
        "powerpc",
    ),
    *("s390x", "mips", "mipsel", "mips64el", "loongarch64", "sparc64", "alpha", "hppa", "m68k", "or1k", "sh4"),
}
ARCHITECTURE_NAMES = {"arch", "architecture", "arch_name", "target_arch", "machine"}

HARD_LIMIT = 500
SOFT_LIMIT = 300


def problems(path: str, source: str) -> Iterator[str]:
    """What is wrong with a file of ours; ``path`` is relative to the project, with slashes."""
    tree = ast.parse(source)
    if ast.get_docstring(tree) is None:
        yield f"{path}: no module docstring"
    lines = source.count("\n")
    if lines > HARD_LIMIT:
        yield f"{path}: {lines} lines, more than {HARD_LIMIT}"
    for node in ast.walk(tree):
        for module in _imported(node, path):
            problem = _import_problem(path, module)
            if problem is not None:
                yield f"{path}:{getattr(node, 'lineno', 0)}: {problem}"
        if not path.startswith("unwind/arch/") and _asks_architecture(node):
            yield f"{path}:{getattr(node, 'lineno', 0)}: asks which architecture it is; put the fact into unwind/arch/"


def _imported(node: ast.AST, path: str) -> list[str]:
    """Absolute names of the modules that a statement or call imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level:
            package = path.split("/")[:-1]
            base = package[: len(package) - node.level + 1]
            return [".".join([*base, *([node.module] if node.module else [])])]
        return [node.module or ""]
    if isinstance(node, ast.Call) and ast.unparse(node.func) in {"__import__", "import_module", "importlib.import_module"}:
        return [str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant)]
    return []


def _import_problem(path: str, module: str) -> str | None:
    package = path.split("/", maxsplit=1)[0]
    top = module.split(".", maxsplit=1)[0]
    if top in MAY_IMPORT:
        return None if top == package or top in MAY_IMPORT[package] else f"{package} may not import {top}"
    if top in FENCES:
        return None if path.startswith(FENCES[top]) else f"{top} may only be imported in {', '.join(FENCES[top])}"
    return None if top in sys.stdlib_module_names else f"{module} may not be imported: list it in FENCES and in pyproject.toml"


def _asks_architecture(node: ast.AST) -> bool:
    """A comparison, match or prefix test of an architecture's name against a literal."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        literals = {text for side in sides for text in _texts(side)}
        return bool(literals & ARCHITECTURES) or (bool(literals) and any(_is_architecture(side) for side in sides))
    if isinstance(node, ast.Match):
        cases = {text for case in node.cases for text in _texts(case.pattern)}
        return bool(cases & ARCHITECTURES) or (bool(cases) and _is_architecture(node.subject))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in {"startswith", "endswith"}:
        literals = {text for argument in node.args for text in _texts(argument)}
        return bool(literals & ARCHITECTURES) or (bool(literals) and _is_architecture(node.func.value))
    return False


def _texts(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def _is_architecture(node: ast.AST) -> bool:
    """``arch``, ``self.architecture``, ``architecture.name``, ``platform.machine()``."""
    if isinstance(node, ast.Call):
        return _is_architecture(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr in ARCHITECTURE_NAMES or (node.attr == "name" and _is_architecture(node.value))
    return isinstance(node, ast.Name) and node.id in ARCHITECTURE_NAMES


def _own_files() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", _own_files())
def test_file_keeps_the_rules(path: str) -> None:
    source = (ROOT / path).read_text("utf-8")
    if source.count("\n") > SOFT_LIMIT:
        warnings.warn(f"{path}: more than {SOFT_LIMIT} lines", stacklevel=1)
    assert list(problems(path, source)) == []


def test_the_walk_sees_every_package() -> None:
    assert {path.split("/")[0] for path in _own_files()} == set(PACKAGES) == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("recording/model.py", "import unwind.capture", "recording/model.py:2: recording may not import unwind"),
        ("unwind/orc.py", "from guest.paging import walk", "unwind/orc.py:2: unwind may not import guest"),
        ("guest/kallsyms.py", "from sampler import rsp", "guest/kallsyms.py:2: guest may not import sampler"),
        ("exporters/folded.py", "def f():\n    import unwind", "exporters/folded.py:3: exporters may not import unwind"),
        ("sampler/loop.py", "import guestprof.cli", "sampler/loop.py:2: sampler may not import guestprof"),
        ("sampler/loop.py", "__import__('exporters.folded')", "sampler/loop.py:2: sampler may not import exporters"),
        ("unwind/walk.py", "import orjson", "unwind/walk.py:2: orjson may only be imported in recording/store, exporters/"),
        ("guest/x.py", "from qemu.qmp import QMPClient", "guest/x.py:2: qemu may only be imported in sampler/"),
        ("sampler/qmp.py", "import defusedxml.ElementTree", "sampler/qmp.py:2: defusedxml may only be imported in sampler/rsp/"),
        ("sampler/qmp.py", "import click", "sampler/qmp.py:2: click may only be imported in guestprof/"),
        ("sampler/recorder.py", "from pygdbmi import x", "sampler/recorder.py:2: pygdbmi may only be imported in sampler/gdb/mi"),
        ("guest/x.py", "import numpy", "guest/x.py:2: numpy may not be imported: list it in FENCES and in pyproject.toml"),
        (
            "guest/x.py",
            "from tests import builders",
            "guest/x.py:2: tests may not be imported: list it in FENCES and in pyproject.toml",
        ),
        ("guest/x.py", "if arch == 'vax': pass", "guest/x.py:2: asks which architecture it is; put the fact into unwind/arch/"),
        (
            "guest/x.py",
            "if a.name == 'x86_64': pass",
            "guest/x.py:2: asks which architecture it is; put the fact into unwind/arch/",
        ),
        (
            "guest/x.py",
            "a = self.arch.name in ('a',)",
            "guest/x.py:2: asks which architecture it is; put the fact into unwind/arch/",
        ),
        (
            "guest/x.py",
            "match architecture:\n    case 'vax': pass",
            "guest/x.py:2: asks which architecture it is; put the fact into unwind/arch/",
        ),
        ("guest/x.py", "arch.startswith('mip')", "guest/x.py:2: asks which architecture it is; put the fact into unwind/arch/"),
    ],
)
def test_a_violation_is_found(path: str, source: str, expected: str) -> None:
    assert list(problems(path, f'"""Docstring."""\n{source}\n')) == [expected]


def test_a_missing_docstring_and_a_long_file_are_found() -> None:
    assert list(problems("guest/x.py", "import os\n")) == ["guest/x.py: no module docstring"]
    assert list(problems("guest/x.py", '"""D."""\n' + "x = 1\n" * 500)) == ["guest/x.py: 501 lines, more than 500"]
    assert list(problems("guest/x.py", '"""D."""\n' + "x = 1\n" * 499)) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("guestprof/cli.py", "import click, sampler.loop, exporters.folded"),
        ("recording/store.py", "import orjson, sqlite3\nfrom recording.model import Sample"),
        ("sampler/rsp/registers.py", "from defusedxml import ElementTree\nfrom .codec import decode"),
        ("unwind/arch/x86_64.py", "if arch.name == 'x86_64': pass"),
        ("guest/x.py", "found = ARCHITECTURES[arch.name]\nsame = arch.name == other.name"),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert list(problems(path, f'"""Docstring."""\n{source}\n')) == []
