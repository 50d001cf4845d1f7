"""The model card: what it says is what was measured, and the code in it runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.models import clip_vision_with_projection, ijepa, vit_without_pooler
from helpers.models import siglip_with_tokenizer as siglip
from helpers.photos import draw
from helpers.runs import SILENT
from huggingface_hub import ModelCard
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, SiglipModel

import lookalike
from lookalike.commands.export import ExportResult
from lookalike.config import ExportConfig
from lookalike.data.transforms import preprocess
from lookalike.evaluation.metrics import headline
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.pretrained import load_pretrained, read_checkpoint


def write_alike(root: Path, first: int) -> Path:
    """Six classes of four images that look like one of two things: hard to tell apart."""
    for label, name in enumerate(["bowl", "cup", "jug", "mug", "pan", "pot"]):
        (root / name).mkdir(parents=True)
        for copy in range(first, first + 4):
            draw(label % 2, 100 * label + copy).save(root / name / f"{copy}.png")
    return root


@pytest.fixture(scope="module")
def run(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs, half of whose classes were held out."""
    root = tmp_path_factory.mktemp("shop")
    lookalike.train(
        lookalike.TrainConfig(
            train=str(write_alike(root / "train", 0)),
            test=str(write_alike(root / "test", 10)),
            model_name=str(tiny_clip),
            holdout_classes="0.5",
            n_classes_per_batch=2,
            learning_rate=3e-3,
            num_epochs=2,
            caption_template="a | photo `of` a {}.",
            device="cpu",
            precision="fp32",
            num_workers=0,
            report=False,
            out=str(root / "out"),
        ),
        progress=SILENT,
    )
    return root / "out"


def export(model: str | Path, out: Path, **settings: Any) -> ExportResult:
    config = ExportConfig(model_name=str(model), out=str(out), **settings)
    return lookalike.export(config, progress=SILENT)


def card_of(model: str | Path, out: Path, **settings: Any) -> ModelCard:
    export(model, out, **settings)
    return ModelCard((out / "README.md").read_text(encoding="utf-8"))


def metrics_of(run: Path, epoch: int) -> dict[str, Any]:
    text = (run / "results" / f"metrics_epoch_{epoch:02}.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


def epoch_file(run: Path, epoch: int) -> Path:
    return run / "weights" / f"encoder_epoch_{epoch:02}.pth"


def test_the_table_holds_what_was_measured_before_and_after(run: Path, tmp_path: Path) -> None:
    text = card_of(epoch_file(run, 2), tmp_path / "out").text
    rows = [
        [cell.strip(" *") for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith(tuple(f"| {name} |" for name in headline()))
    ]
    before, after = metrics_of(run, 0), metrics_of(run, 2)
    assert [row[0] for row in rows] == list(headline())
    assert before["metrics"]["mAP"] != after["metrics"]["mAP"] != after["metrics"]["mAP@R"]
    for name, *cells, change in rows:
        for cell, document in zip(cells, (before, after), strict=True):
            mean, low, high = (float(number) for number in re.findall(r"\d\.\d+", cell))
            assert mean == pytest.approx(document["metrics"][name], abs=5.1e-5)
            assert [low, high] == pytest.approx(document["intervals"][name], abs=5.1e-4)
        difference = after["metrics"][name] - before["metrics"][name]
        assert float(change) == pytest.approx(difference, abs=5.1e-5)
    assert "before training (epoch 0)" in text
    assert "this model (epoch 2)" in text
    images = after["protocol"]["num_queries"]
    assert f"Each of {images} test images, of 3 classes, searched in all the others." in text
    assert "It was trained on none of these classes." in text


def test_the_hub_can_read_the_front_matter(run: Path, tmp_path: Path) -> None:
    card = card_of(epoch_file(run, 1), tmp_path / "shop-clip", license="mit")
    data = yaml.safe_load(card.content.split("---")[1])
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "image-feature-extraction"
    assert data["license"] == "mit"
    assert "image-retrieval" in data["tags"]
    assert "base_model" not in data  # it came from a folder, which the hub does not know
    assert card.data.to_dict().keys() == data.keys()
    (entry,) = data["model-index"]
    assert entry["name"] == "shop-clip"
    measured = metrics_of(run, 1)["metrics"]
    numbers = {one["type"]: one["value"] for one in entry["results"][0]["metrics"]}
    assert numbers == {name: round(measured[name], 4) for name in headline()}


def test_what_is_not_known_is_left_out(tiny_clip: Path, tmp_path: Path) -> None:
    card = card_of(tiny_clip, tmp_path / "out")
    data = card.data.to_dict()
    assert not {"license", "base_model", "model-index", "metrics"} & data.keys()
    assert "There are no measured numbers here: it was not trained with Lookalike." in card.text
    assert "How it was trained" not in card.text
    assert "No licence is stated here" in card.text


def test_a_model_that_came_from_the_hub_is_named_as_the_base(
    run: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    assert load_pretrained(str(tiny_clip)).hub_id is None
    checkpoint = read_checkpoint(epoch_file(run, 1))
    checkpoint["model"]["hub_id"] = "openai/clip-tiny"
    torch.save(checkpoint, tmp_path / "encoder.pth")
    card = card_of(tmp_path / "encoder.pth", tmp_path / "out")
    assert card.data.to_dict()["base_model"] == "openai/clip-tiny"
    assert (
        "Fine-tuned from [openai/clip-tiny](https://huggingface.co/openai/clip-tiny)" in card.text
    )


def test_the_settings_that_shaped_the_training_are_listed_and_paths_are_not(
    run: Path, tmp_path: Path
) -> None:
    card = card_of(epoch_file(run, 1), tmp_path / "out")
    assert "1 of 2 epochs with the objective `supcon`" in card.text
    assert "at a learning rate of 0.003" in card.text
    assert "2 classes x 2 images" in card.text
    listed = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", card.text, re.MULTILINE))
    assert listed == {
        "precision": "fp32",
        "holdout_classes": "0.5",
        "caption_template": "a / photo 'of' a {}.",
    }
    for path in (tmp_path / "out").iterdir():
        assert str(run.parent).encode() not in path.read_bytes(), path
        assert str(tmp_path).encode() not in path.read_bytes(), path


UNREADABLE = "its run left no results/metrics_epoch_01.json beside it that can be read"


def _without_results(out: Path) -> None:
    shutil.rmtree(out / "results")


def _results_of_another_run(out: Path) -> None:
    path = out / "results" / "metrics_epoch_01.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"run": "another"}))


def _results_without_labels(out: Path) -> None:
    path = out / "results" / "metrics_epoch_01.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": None}))


def _damaged_results(out: Path) -> None:
    (out / "results" / "metrics_epoch_01.json").write_text('{"epoch": 1')


def _results_of_an_earlier_version(out: Path) -> None:
    path = out / "results" / "metrics_epoch_01.json"
    document = json.loads(path.read_text())
    del document["health"], document["protocol"]["fingerprint"]
    path.write_text(json.dumps(document))


def _in_the_middle(out: Path) -> None:
    checkpoint = read_checkpoint(epoch_file(out, 1))
    checkpoint["state"]["step"] = 1
    torch.save(checkpoint, epoch_file(out, 1))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_without_results, UNREADABLE),
        (_damaged_results, UNREADABLE),
        (_results_of_an_earlier_version, UNREADABLE),
        (_results_of_another_run, "the results beside it are those of another run"),
        (_results_without_labels, "the images it was tested on have no labels"),
        (_in_the_middle, "it was saved in the middle of an epoch, and never evaluated"),
    ],
)
def test_numbers_that_are_not_of_these_weights_are_never_shown(
    spoil: Callable[[Path], None], why: str, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    spoil(tmp_path / "run")
    result = export(epoch_file(tmp_path / "run", 1), tmp_path / "out")
    card = ModelCard((tmp_path / "out" / "README.md").read_text(encoding="utf-8"))
    assert result.unmeasured == why
    assert f"There are no measured numbers here: {why}." in card.text
    assert "mAP@R" not in card.content


def test_another_embedding_than_was_measured_has_no_numbers(run: Path, tmp_path: Path) -> None:
    card = card_of(epoch_file(run, 1), tmp_path / "out", embedding="pooled")
    assert "its run measured the projected embedding, not the pooled one" in card.text


def run_code(card: ModelCard, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs the Python of a card beside the export, with an image of that name."""
    draw(3, 0).save(folder / "photo.jpg", quality=95)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", card.text, re.DOTALL):
        exec(block, names)
    return names


@pytest.mark.parametrize("to", ["transformers", "sentence-transformers", "onnx"])
def test_the_code_of_the_card_gives_the_embedding_of_the_checkpoint(
    to: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = card_of(epoch_file(run, 2), tmp_path / "out", to=to)
    folder = tmp_path / "out" if to == "onnx" else tmp_path
    names = run_code(card, folder, monkeypatch)
    found = torch.as_tensor(names.get("embedding", names.get("embeddings")))
    torch.testing.assert_close(found, _expected(epoch_file(run, 2), folder), atol=1e-5, rtol=0)
    if to != "onnx":
        assert names["similarity"].shape == (1, 1)


@pytest.mark.parametrize("make", [siglip, vit_without_pooler, ijepa, clip_vision_with_projection])
def test_the_code_of_the_card_suits_the_model(
    make: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(make(tmp_path / "model"))
    names = run_code(card_of(model, tmp_path / "out"), tmp_path, monkeypatch)
    expected = _expected(model, tmp_path)
    torch.testing.assert_close(names["embedding"], expected, atol=1e-5, rtol=0)
    assert ("similarity" in names) is (make is siglip)
    if make is siglip:
        tokens = AutoTokenizer.from_pretrained(model)(
            ["a red mug"], padding="max_length", return_tensors="pt"
        )
        with torch.inference_mode():
            texts = SiglipModel.from_pretrained(model).get_text_features(**tokens).pooler_output
        similarity = expected @ normalize(texts, dim=-1).T
        torch.testing.assert_close(names["similarity"], similarity, atol=1e-5, rtol=0)


@pytest.mark.parametrize("to", ["transformers", "sentence-transformers"])
def test_the_code_of_the_card_takes_any_name_of_a_folder(
    to: str, tiny_clip: Path, tmp_path: Path
) -> None:
    card = card_of(tiny_clip, tmp_path / 'red "mugs"', to=to)
    for block in re.findall(r"```python\n(.*?)```", card.text, re.DOTALL):
        compile(block, "card", "exec")
    assert r'"red \"mugs\""' in card.text


def test_the_code_of_the_card_of_a_pooled_embedding_gives_that(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = card_of(tiny_clip, tmp_path / "out", embedding="pooled")
    names = run_code(card, tmp_path, monkeypatch)
    expected = _expected(tiny_clip, tmp_path, embedding="pooled")
    torch.testing.assert_close(names["embedding"], expected, atol=1e-5, rtol=0)
    assert names["encoder"].kind == "pooled"


def _expected(model: Path, folder: Path, **settings: Any) -> Tensor:
    from PIL import Image

    encoder = CLIPEncoder(str(model), **settings)
    with Image.open(folder / "photo.jpg") as image, torch.inference_mode():
        embeddings: Tensor = encoder(preprocess(image.convert("RGB"), encoder.preprocessing)[None])
    return embeddings
