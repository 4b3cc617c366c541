"""What is shipped: the wheel holds the packages and nothing else, and asks for what they import and nothing else."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("sampler", "unwind", "guest", "recording", "exporters", "guestprof")
DISTRIBUTIONS = {"qemu": "qemu.qmp", "elftools": "pyelftools", "rust_demangler": "rust-demangler"}
"""Import name -> distribution, where they differ."""

_BUILD = "import setuptools.build_meta as backend, sys; backend.build_wheel(sys.argv[1])"


def _shipped_files() -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """The wheel, built from a copy of the tree by the build backend that is installed: no network, no installation."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests", "examples", "benchmarks"):
        (tree / name).mkdir()
        (tree / name / "__init__.py").write_text('"""Not shipped."""\n', "utf-8")
    dist = tmp_path_factory.mktemp("dist")
    done = subprocess.run([sys.executable, "-c", _BUILD, str(dist)], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = dist.glob("*.whl")
    return zipfile.Path(built)


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: zipfile.Path) -> None:
    names = {name for name in wheel.root.namelist() if not name.endswith("/")}
    info = {name for name in names if ".dist-info/" in name}
    assert names - info == _shipped_files()
    assert {name.split(".dist-info/")[1] for name in info} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
        "top_level.txt",
    }


def test_the_wheel_names_its_command_licence_and_python(wheel: zipfile.Path) -> None:
    (info,) = (path for path in wheel.iterdir() if path.name.endswith(".dist-info"))
    assert (info / "entry_points.txt").read_text("utf-8") == "[console_scripts]\nguestprof = guestprof.__main__:main\n"
    metadata = (info / "METADATA").read_text("utf-8")
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata


def test_dependencies_are_what_is_imported() -> None:
    imported: set[str] = set()
    for name in _shipped_files():
        if name.endswith(".py"):
            for node in ast.walk(ast.parse((ROOT / name).read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
                    # The dissect libraries share a name and are a distribution each.
                    parts = node.module.split(".")
                    imported.add(".".join(parts[:2]) if parts[0] == "dissect" else parts[0])
    third_party = {DISTRIBUTIONS.get(name, name) for name in imported - set(PACKAGES) - set(sys.stdlib_module_names)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {re.split(r"[<>=!~ ;\[]", requirement)[0] for requirement in project["dependencies"]}
    optional = {re.split(r"[<>=!~ ;\[]", requirement)[0] for requirement in project["optional-dependencies"]["storage"]}
    assert third_party - optional == declared
    assert third_party & optional == {name for name in optional if name.startswith("dissect.")}
