"""Imports point one way, and names that others do not promise to keep stay in their two files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sae_lens_isae"

LAYERS = [
    {"errors"},
    {"progress", "checks", "distributed"},
    {"files"},
    {"private_folders", "_private"},
    {"ops"},
    {"solvers", "losses", "synthetic"},
    {"architectures"},
    {"report"},
    {"inputs"},
    {"contexts"},
    {"training", "identifiability", "recoding", "saebench"},
    {"cebench"},
    {"evals", "sharing"},
    {"demo_report"},
    {"demo", "full_report"},
]
"""From the bottom. A room may import from those below it, and from itself."""

MAY_BE_PRIVATE = {"_private.py", "saebench/upstream.py"}
"""The only files that may use names beginning with an underscore of another package."""


def imports(path: Path) -> list[tuple[str, str]]:
    """Module and name of everything that a file imports, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The folder below the package, or the file."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_has_a_layer():
    rooms = {room(path) for path in FILES} - {"__init__", "__main__"}
    assert rooms == set().union(*LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_import_runs_upwards(path):
    if room(path) in ("__init__", "__main__"):
        return
    level = next(i for i, layer in enumerate(LAYERS) if room(path) in layer)
    for module, _ in imports(path):
        assert not module.startswith("isae_cli"), "the library does not know its command line"
        if module.startswith("sae_lens_isae."):
            other = module.split(".")[1]
            below = set().union(*LAYERS[:level])
            assert other == room(path) or other in below, f"{path.name} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_names_of_others_are_in_two_files(path):
    if str(path.relative_to(PACKAGE)) in MAY_BE_PRIVATE:
        return
    for module, name in imports(path):
        foreign = not module.startswith(("sae_lens_isae", "__future__"))
        parts = [*module.split("."), name]
        assert not (foreign and any(part.startswith("_") for part in parts)), (module, name)
        ours = module.startswith("sae_lens_isae.")
        assert not (ours and name.startswith("_")), f"{path.name} imports {name} of {module}"
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    own = {
        node.attr
        for node in attributes
        if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
    }
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    # obj._name where obj is neither self nor cls nor a module of ours
    for node in attributes:
        if re.match(r"_[a-z]", node.attr):
            named = ast.unparse(node.value)
            allowed = named in ("self", "cls") or named.startswith("super()")
            assert allowed or node.attr in own | defined | {"_replace", "_asdict", "_exit"}, (
                f"{path.name}:{node.lineno}: {named}.{node.attr}"
            )


def test_no_file_is_long_and_no_function_is_long_without_a_reason():
    folders = (
        ROOT / name for name in ("isae_cli", "tests", "benchmarks", "docs", "examples", ".ci")
    )
    for path in [*FILES, *(path for folder in folders for path in folder.rglob("*.py"))]:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 400, path
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if not body:
                    continue
                n = node.end_lineno - body[0].lineno + 1
                before = " ".join(lines[max(0, node.lineno - 4) : body[0].lineno])
                assert n <= 60 or "long because" in before, f"{path.name}: {node.name} has {n}"
