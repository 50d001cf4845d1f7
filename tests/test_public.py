"""What the package promises to the outside."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib.metadata import version

import pytest

import lookalike

PUBLIC = [
    "ArcFaceLoss",
    "BalancedBatchSampler",
    "BenchConfig",
    "BenchResult",
    "CLIPEncoder",
    "CheckConfig",
    "CheckResult",
    "CrossBatchMemory",
    "EmbedConfig",
    "EmbedResult",
    "Embedder",
    "EvaluateConfig",
    "EvaluateResult",
    "ExportConfig",
    "ExportResult",
    "LookalikeError",
    "SupConLoss",
    "TrainConfig",
    "TrainResult",
    "bench",
    "check",
    "embed",
    "evaluate",
    "export",
    "train",
]
HEAVY = ["torch", "transformers", "rich", "numpy", "PIL", "yaml"]


def modules_after(code: str) -> list[str]:
    """The heavy modules that a fresh Python holds after running some code."""
    report = (
        "import json, sys; "
        f"print('\\n' + json.dumps([m for m in {HEAVY!r} if m in sys.modules]), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    loaded: list[str] = json.loads(done.stderr.splitlines()[-1])
    return loaded


def test_the_public_names_are_these_and_no_others() -> None:
    assert lookalike.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(lookalike))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_explains_itself(name: str) -> None:
    thing = getattr(lookalike, name)
    assert thing.__name__ == name
    assert thing.__module__.startswith("lookalike.")
    assert thing.__doc__, name
    assert not thing.__doc__.startswith(f"{name}(")  # what a dataclass writes by itself
    assert inspect.cleandoc(thing.__doc__).partition("\n")[0].rstrip().endswith((".", ":"))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lookalike' has no attribute 'trian'"):
        _ = lookalike.trian


def test_the_version_is_that_of_the_installed_package() -> None:
    assert lookalike.__version__ == version("lookalike")


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert modules_after("import lookalike; dir(lookalike); lookalike.LookalikeError") == []


def test_asking_for_help_loads_nothing_heavy() -> None:
    code = """
from lookalike.cli.main import main
for words in (["--help"], ["train", "--help"], ["evaluate", "--help"], ["check", "--help"],
              ["bench", "--help"], ["export", "--help"], ["demo", "--help"], ["--version"]):
    try:
        main(words)
    except SystemExit as stop:
        assert stop.code == 0
"""
    assert modules_after(code) == []


def test_printing_settings_needs_no_torch() -> None:
    code = "from lookalike.cli.main import main; assert main(['train', '--print-config']) == 0"
    assert "torch" not in modules_after(code)
