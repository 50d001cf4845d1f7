"""The tests' own house: what is shared lives in `helpers`."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

HERE = Path(__file__).parent


def modules_imported_by(file: Path) -> set[str]:
    """Returns the names of all modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


def test_no_test_file_imports_from_a_test_file() -> None:
    for file in HERE.rglob("*.py"):
        for module in modules_imported_by(file):
            assert not module.startswith((".", "tests.", "test_", "conftest")), (file, module)


def imports_between_packages() -> dict[str, set[str]]:
    """Returns which top-level packages and modules of ours each of them imports."""
    graph = grimp.build_graph("lookalike")
    arrows: dict[str, set[str]] = {}
    for module in sorted(graph.modules - {"lookalike", "lookalike.__main__"}):
        package = module.split(".")[1]
        imported = graph.find_modules_directly_imported_by(module) - {"lookalike"}
        arrows.setdefault(package, set()).update(name.split(".")[1] for name in imported)
    return {package: found - {package} for package, found in arrows.items()}


def test_the_diagram_of_the_architecture_page_is_true() -> None:
    arrows = imports_between_packages()
    below: dict[str, set[str]] = {}
    for package in TopologicalSorter(arrows).static_order():  # raises where there is a circle
        below[package] = arrows[package].union(*(below[other] for other in arrows[package]))
    expected = {
        (package, other)
        for package, found in arrows.items()
        for other in found
        if not any(other in below[between] for between in found)
    }

    page = (HERE.parent / "docs/architecture.md").read_text(encoding="utf-8")

    assert set(re.findall(r"^    (\w+) --> (\w+)$", page, re.MULTILINE)) == expected
