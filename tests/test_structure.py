"""The tests' own house: what is shared lives in `helpers`."""

from __future__ import annotations

import ast
from pathlib import Path

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
