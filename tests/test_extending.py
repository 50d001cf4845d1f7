"""What README and docs/extending.md tell people to write works as it stands there."""

from __future__ import annotations

import json
import re
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.photos import draw
from helpers.runs import Settings, Watch, assert_same_bits, evaluate, load, press_ctrl_c, train

import lookalike
from lookalike.cli.verbs import VERBS
from lookalike.commands.compare import compare
from lookalike.data.sources import SOURCES
from lookalike.errors import ConfigError, Interrupted
from lookalike.evaluation.metrics import METRICS
from lookalike.report.sections import SECTIONS

ROOT = Path(__file__).parents[1]


def block(page: str, heading: str) -> str:
    """The Python below a heading."""
    section = (ROOT / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return section.split("```python\n")[1].split("```")[0]


def run(code: str, **names: Any) -> dict[str, Any]:
    exec(code, names)
    return names


def test_the_objective_is_its_formula_trains_and_is_resumed_bit_for_bit(
    settings: Settings, photos: Path
) -> None:
    make = run(block("docs/extending.md", "An objective"), __name__="imported")["BatchHardTriplet"]
    rows = torch.nn.functional.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    expected = 0.0
    for i in range(6):
        apart = [1 - sum(float(a) * float(b) for a, b in zip(rows[i], row, strict=True))
                 for row in rows]  # fmt: skip
        hardest = max(apart[j] for j in range(6) if labels[j] == labels[i])
        nearest = min(apart[j] for j in range(6) if labels[j] != labels[i])
        expected += max(0.0, hardest - nearest + 0.2) / 6
    assert make()(rows, labels).item() == pytest.approx(expected, abs=1e-12)

    whole = lookalike.train(
        settings(num_epochs=2, out=str(photos / "whole")), objective=make(), progress=Watch()
    )
    with pytest.raises(Interrupted):
        lookalike.train(settings(num_epochs=2), objective=make(), progress=Watch(7, press_ctrl_c))
    resumed = lookalike.train({}, resume=photos / "out", objective=make(), progress=Watch())
    assert_same_bits(load(resumed.checkpoint)["model_state_dict"],
                     load(whole.checkpoint)["model_state_dict"])  # fmt: skip
    assert load(resumed.checkpoint)["config"]["objective"] == "BatchHardTriplet"
    with pytest.raises(ConfigError, match="BatchHardTriplet"):
        lookalike.train({"num_epochs": 3}, resume=photos / "out", progress=Watch())


def test_the_metric_is_measured_written_compared_and_tells_the_best_epoch(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, metric in list(METRICS.items()):
        monkeypatch.setitem(METRICS, name, metric)  # put back as they were
    monkeypatch.setitem(METRICS, "found@20", METRICS["mAP"])
    del METRICS["found@20"]
    run(block("docs/extending.md", "A metric"))
    result = evaluate(settings(out=str(tmp_path / "one")))
    assert result.retrieval is not None
    positions, query = result.retrieval.positions, result.retrieval.query.labels or []
    document = json.loads(result.files[1].read_text())
    shares = []
    rows = result.retrieval.query_embeddings[:].double() @ (
        result.retrieval.gallery_embeddings[:].double().T
    )
    for i, label in enumerate(query):
        others = sorted((j for j in range(len(query)) if j != i), key=lambda j: -rows[i, j].item())
        right = sum(query[j] == label for j in others[:20])
        shares.append(right / min(20, sum(query[j] == label for j in others)))
    assert len(positions) == len(shares)
    assert document["metrics"]["found@20"] == pytest.approx(sum(shares) / len(shares), abs=1e-6)
    assert {"found@20"} <= set(document["intervals"]) & set(document["macro_metrics"])
    other = evaluate(settings(out=str(tmp_path / "two")))
    assert "found@20" in compare([result.files[1], other.files[1]]).tests[0]
    assert train(settings(best_metric="found@20")).best is not None


def test_the_source_is_read_as_the_folder_it_was_made_of(
    settings: Settings, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(photos / "train.zip", "w") as archive:
        for path in sorted((photos / "train").rglob("*.png")):
            archive.write(path, path.relative_to(photos / "train"))
    monkeypatch.setitem(SOURCES, "zip", SOURCES["folder"])  # put back at the end
    run(block("docs/extending.md", "A kind of source"))
    runs = [
        train(settings(train=str(photos / source), out=str(photos / f"run-{source}")))
        for source in ("train", "train.zip")
    ]
    assert_same_bits(load(runs[0].checkpoint)["model_state_dict"],
                     load(runs[1].checkpoint)["model_state_dict"])  # fmt: skip


def test_every_section_has_its_fragment_and_every_verb_its_files() -> None:
    templates = ROOT / "src" / "lookalike" / "report" / "templates" / "sections"
    sections = {make.__module__.rpartition(".")[2] for make in SECTIONS}
    assert {path.name.removesuffix(".html.j2") for path in templates.iterdir()} == sections
    for verb in VERBS:
        assert find_spec(f"lookalike.cli.{verb.name}"), verb.name
        if verb.config is not None:
            assert find_spec(f"lookalike.config.{verb.name}"), verb.name
            assert find_spec(f"lookalike.commands.{verb.name}"), verb.name
            assert callable(getattr(lookalike, verb.name)), verb.name


def test_the_examples_of_the_readme_run(
    photos: Path,
    tiny_clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On small images, with a small model in the place of those that they name."""
    monkeypatch.chdir(photos)
    (photos / "photos").mkdir()
    for split in ("train", "test"):
        (photos / split).rename(photos / "photos" / split)
    for number, name in enumerate(("mug.jpg", "bowl.jpg")):
        draw(number, 0).save(photos / name)
    page = (ROOT / "README.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 3
    small = f'model_name="{tiny_clip}", num_workers=0, device="cpu", report=False)'
    train_it, embed_it, evaluate_it = (
        code.replace("learning_rate=1e-5)", f"learning_rate=1e-5, {small}").replace(
            'model_name="facebook/dinov2-small")', f'out="measured", {small}'
        )
        for code in examples
    )
    run(train_it, __name__="__main__")
    run(embed_it, __name__="__main__")
    run(evaluate_it, __name__="__main__")
    printed = capsys.readouterr().out
    assert "encoder_epoch_01.pth" in printed
    assert "tensor([[" in printed
    assert "mAP@R" in printed
