"""What is exported, loaded by those it is meant for, against the checkpoint it was made from."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.limits import disk_with_room_for, posix_only
from helpers.models import (
    SIZE_PX,
    changed_checkpoint,
    clip_vision_with_projection,
    dinov2,
    ijepa,
    vit_without_pooler,
)
from helpers.models import siglip_with_tokenizer as siglip
from helpers.models import small_resnet as resnet
from helpers.photos import draw
from helpers.runs import SILENT
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import normalize
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    CLIPModel,
    CLIPVisionModelWithProjection,
    Dinov2Model,
    SiglipModel,
)

import lookalike
from lookalike.commands.export import ExportResult
from lookalike.config import ExportConfig
from lookalike.data.transforms import preprocess
from lookalike.errors import (
    CheckpointError,
    ConfigError,
    MissingExtraError,
    ModelError,
    OutputError,
)
from lookalike.exports.formats import onnx_graph
from lookalike.model.encoder import CLIPEncoder

Make = Callable[[Path], str]


def export(model: str | Path | None, out: Path, **settings: Any) -> ExportResult:
    name = None if model is None else str(model)
    return lookalike.export(
        ExportConfig(model_name=name, out=str(out), **settings), progress=SILENT
    )


@pytest.fixture
def images() -> list[Image.Image]:
    return [draw(label, 0, size) for label, size in enumerate([(40, 36), (36, 70), (64, 33)])]


@pytest.fixture
def clip(tiny_clip: Path) -> Make:
    return lambda _folder: str(tiny_clip)


def pixels_of(encoder: CLIPEncoder, images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([preprocess(image, encoder.preprocessing) for image in images])


def embeddings_of(checkpoint: Path, images: list[Image.Image], **settings: Any) -> torch.Tensor:
    encoder = CLIPEncoder(str(checkpoint), **settings)
    with torch.inference_mode():
        embeddings: torch.Tensor = encoder(pixels_of(encoder, images))
    return embeddings


def pixel_values(checkpoint: Path, images: list[Image.Image]) -> torch.Tensor:
    """Pixels as the encoder hands them to its backbone."""
    encoder = CLIPEncoder(str(checkpoint))
    scaled = pixels_of(encoder, images).float() * encoder.preprocessing.scale
    return (scaled - encoder._mean) / encoder._std


# --- Transformers -----------------------------------------------------------------------------


def _clip_row(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = (
        CLIPModel.from_pretrained(folder).get_image_features(pixels).pooler_output
    )
    return output


def _siglip_row(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    model = SiglipModel.from_pretrained(folder)
    output: torch.Tensor = model.get_image_features(pixels).pooler_output
    return output


def _dinov2_row(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = Dinov2Model.from_pretrained(folder)(pixels).pooler_output
    return output


def _first_token(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = AutoModel.from_pretrained(folder)(pixels).last_hidden_state[:, 0]
    return output


def _mean_of_tokens(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = AutoModel.from_pretrained(folder)(pixels).last_hidden_state.mean(dim=1)
    return output


def _projected_row(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    model = CLIPVisionModelWithProjection.from_pretrained(folder)
    output: torch.Tensor = model(pixels).image_embeds
    return output


@pytest.mark.parametrize(
    ("make", "row"),
    [
        ("clip", _clip_row),
        (siglip, _siglip_row),
        (dinov2, _dinov2_row),
        (vit_without_pooler, _first_token),
        (ijepa, _mean_of_tokens),
        (clip_vision_with_projection, _projected_row),
    ],
)
def test_plain_transformers_gives_the_embeddings_of_the_checkpoint_to_the_last_bit(
    make: Make | str, row: Callable[[Path, torch.Tensor], torch.Tensor], tmp_path: Path,
    images: list[Image.Image], request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    make_model: Make = request.getfixturevalue(make) if isinstance(make, str) else make
    model = make_model(tmp_path / "model")
    checkpoint = changed_checkpoint(model, tmp_path / "encoder_epoch_01.pth")
    result = export(checkpoint, tmp_path / "out")
    expected = embeddings_of(checkpoint, images)
    with torch.inference_mode():
        rows = row(tmp_path / "out", pixel_values(checkpoint, images))
    assert torch.equal(normalize(rows, dim=-1), expected)
    assert torch.equal(embeddings_of(tmp_path / "out", images), expected)
    assert not torch.equal(embeddings_of(Path(model), images), expected)
    assert result.agreement.largest_difference == 0
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    cut = processor(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(cut, pixel_values(checkpoint, images), atol=1e-5, rtol=0)


def test_the_pooled_embedding_of_two_towers_is_exported_as_it_was_trained(
    tiny_clip: Path, tmp_path: Path, images: list[Image.Image]
) -> None:
    checkpoint = changed_checkpoint(str(tiny_clip), tmp_path / "one.pth", embedding="pooled")
    result = export(checkpoint, tmp_path / "out")
    assert (result.kind, result.dim) == ("pooled", 32)
    expected = embeddings_of(checkpoint, images, embedding="pooled")
    with torch.inference_mode():
        tower = CLIPModel.from_pretrained(tmp_path / "out").vision_model
        rows = tower(pixel_values(checkpoint, images)).pooler_output
    assert torch.equal(normalize(rows, dim=-1), expected)


def test_the_text_tower_is_the_original_one_bit_for_bit(tiny_clip: Path, tmp_path: Path) -> None:
    export(changed_checkpoint(str(tiny_clip), tmp_path / "one.pth"), tmp_path / "out")
    before, after = (
        load_file(folder / "model.safetensors") for folder in (tiny_clip, tmp_path / "out")
    )
    assert before.keys() == after.keys()
    of_text = {name for name in before if name.startswith(("text_", "logit_scale"))}
    assert len(of_text) > 30
    assert {name for name in before if torch.equal(before[name], after[name])} == of_text
    words = ["a red mug", "blue bowl"]
    old, new = (
        AutoTokenizer.from_pretrained(f)(words)["input_ids"] for f in (tiny_clip, tmp_path / "out")
    )
    assert old == new
    both = AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(both).__name__ == "CLIPProcessor"
    assert both(text=words)["input_ids"] == old


def test_files_that_are_no_text_survive_as_bytes(tmp_path: Path) -> None:
    model = Path(siglip(tmp_path / "model"))
    (model / "spiece.model").write_bytes(bytes(range(256)))
    export(changed_checkpoint(str(model), tmp_path / "one.pth"), tmp_path / "out")
    assert (tmp_path / "out" / "spiece.model").read_bytes() == bytes(range(256))


def test_any_model_can_be_exported_not_only_checkpoints(
    tmp_path: Path, images: list[Image.Image]
) -> None:
    model = dinov2(tmp_path / "model")
    result = export(model, tmp_path / "out")
    assert torch.equal(embeddings_of(tmp_path / "out", images), embeddings_of(Path(model), images))
    assert result.unmeasured == "it was not trained with Lookalike"


def test_an_exported_folder_can_be_exported_again(
    tiny_clip: Path, tmp_path: Path, images: list[Image.Image]
) -> None:
    checkpoint = changed_checkpoint(str(tiny_clip), tmp_path / "one.pth")
    export(checkpoint, tmp_path / "first")
    export(tmp_path / "first", tmp_path / "second")
    expected = embeddings_of(checkpoint, images)
    assert torch.equal(embeddings_of(tmp_path / "second", images), expected)


@posix_only
@pytest.mark.parametrize("to", ["transformers", "sentence-transformers"])
def test_all_files_of_an_export_have_the_permissions_of_new_files(
    to: Any, tiny_clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "new").touch()
    export(tiny_clip, tmp_path / "out", to=to)
    modes = {path.stat().st_mode for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "new").stat().st_mode}


# --- sentence-transformers --------------------------------------------------------------------


@pytest.mark.parametrize("make", ["clip", siglip, dinov2, vit_without_pooler, ijepa])
def test_sentence_transformers_encodes_images_as_the_checkpoint_does(
    make: Make | str, tmp_path: Path, images: list[Image.Image], request: pytest.FixtureRequest
) -> None:
    from sentence_transformers import SentenceTransformer

    make_model: Make = request.getfixturevalue(make) if isinstance(make, str) else make
    checkpoint = changed_checkpoint(make_model(tmp_path / "model"), tmp_path / "one.pth")
    export(checkpoint, tmp_path / "out", to="sentence-transformers")
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    expected = embeddings_of(checkpoint, images).numpy()
    np.testing.assert_allclose(model.encode(images), expected, atol=1e-6)
    assert torch.equal(embeddings_of(tmp_path / "out", images), torch.from_numpy(expected))


@pytest.mark.parametrize("make", ["clip", siglip])
def test_sentence_transformers_encodes_texts_as_transformers_does(
    make: Make | str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from sentence_transformers import SentenceTransformer

    make_model: Make = request.getfixturevalue(make) if isinstance(make, str) else make
    folder = Path(make_model(tmp_path / "model"))
    export(folder, tmp_path / "out", to="sentence-transformers")
    found = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(["a red mug", "mug"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    padding = "max_length" if make is siglip else True
    words = tokenizer(["a red mug", "mug"], padding=padding, return_tensors="pt")
    with torch.inference_mode():
        rows = AutoModel.from_pretrained(folder).get_text_features(**words).pooler_output
    np.testing.assert_allclose(found, normalize(rows, dim=-1).numpy(), atol=1e-6)


def test_the_modules_are_named_as_sentence_transformers_itself_names_them(
    tiny_clip: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Transformer

    export(tiny_clip, tmp_path / "out", to="sentence-transformers")
    theirs = SentenceTransformer(modules=[Transformer(str(tiny_clip)), Normalize()], device="cpu")
    theirs.save_pretrained(str(tmp_path / "theirs"), create_model_card=False)

    def read(folder: str, name: str) -> Any:
        return json.loads((tmp_path / folder / name).read_text())

    assert read("out", "modules.json") == read("theirs", "modules.json")
    mine, same = (read(folder, "sentence_bert_config.json") for folder in ("out", "theirs"))
    assert mine.pop("processor_kwargs") == {"backend": "pil"}
    assert mine == same
    name = "config_sentence_transformers.json"
    assert read("out", name).keys() == read("theirs", name).keys()


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        ("clip", {"embedding": "pooled"}, "takes the projected embedding alone"),
        (clip_vision_with_projection, {}, "would load it without the projection"),
        (resnet, {}, r"of shape \(3, 1, 16\), and the original gives \(3, 16\)"),
    ],
)
def test_what_sentence_transformers_cannot_hold_is_refused(
    make: Make | str, settings: dict[str, Any], message: str, tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    make_model: Make = request.getfixturevalue(make) if isinstance(make, str) else make
    model = make_model(tmp_path / "model")
    with pytest.raises(ModelError, match=message):
        export(model, tmp_path / "new/out", to="sentence-transformers", **settings)
    assert list((tmp_path / "new").iterdir()) == []


# --- ONNX -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        "clip",
        resnet,
        *(pytest.param(one, marks=pytest.mark.slow) for one in (vit_without_pooler, ijepa)),
    ],
)
def test_onnx_runtime_embeds_batches_of_any_size_as_the_checkpoint_does(
    make: Make | str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    import onnxruntime

    make_model: Make = request.getfixturevalue(make) if isinstance(make, str) else make
    checkpoint = changed_checkpoint(make_model(tmp_path / "model"), tmp_path / "one.pth")
    result = export(checkpoint, tmp_path / "out", to="onnx")
    assert 0 < result.agreement.largest_difference < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for size in (1, 2, 7):
        images = [draw(label, size) for label in range(size)]
        pixels = pixels_of(CLIPEncoder(str(checkpoint)), images).permute(0, 2, 3, 1).numpy()
        assert pixels.dtype == np.uint8
        found = session.run(None, {"pixels": pixels})[0]
        np.testing.assert_allclose(found, embeddings_of(checkpoint, images).numpy(), atol=1e-5)


def test_the_graph_says_what_it_takes_and_holds_no_text_tower(
    tiny_clip: Path, tmp_path: Path
) -> None:
    import onnx

    export(tiny_clip, tmp_path / "out", to="onnx")
    graph = onnx.load(tmp_path / "out" / "model.onnx")
    (pixels,), (embeddings,) = graph.graph.input, graph.graph.output
    assert [d.dim_param or d.dim_value for d in pixels.type.tensor_type.shape.dim] == [
        "batch", SIZE_PX, SIZE_PX, 3,
    ]  # fmt: skip
    assert pixels.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in embeddings.type.tensor_type.shape.dim] == [
        "batch", 24,
    ]  # fmt: skip
    metadata = {one.key: one.value for one in graph.metadata_props}
    facts = json.loads((tmp_path / "out" / "lookalike.json").read_text())
    told = json.loads(metadata["lookalike.preparation"])
    assert told["resize"] == {"shortest_edge": SIZE_PX}
    assert facts["preparation"] == told | {"scale_and_normalize_are_in_the_model": True}
    assert facts["embedding"] == {"kind": "projected", "dim": 24, "normalized": True}
    names = [tensor.name for tensor in graph.graph.initializer]
    assert len(names) > 30
    assert not [name for name in names if "text" in name]


def test_a_graph_that_gives_other_embeddings_never_appears(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = onnx_graph._Graph.forward

    def wrong(self: Any, pixels: torch.Tensor) -> torch.Tensor:
        return normalize(right(self, pixels) + 1e-3, dim=-1)

    monkeypatch.setattr(onnx_graph._Graph, "forward", wrong)
    with pytest.raises(ModelError, match=r"from the original's by up to \d\.\de-0[34], but 1e-04"):
        export(tiny_clip, tmp_path / "new/out", to="onnx")
    assert list((tmp_path / "new").iterdir()) == []


# --- What is in the way -----------------------------------------------------------------------


def test_a_folder_that_is_no_export_is_never_touched(tiny_clip: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.png").touch()
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="photos already exists and is not a Lookalike exp"):
            export(tiny_clip, tmp_path / "photos", overwrite=overwrite)
    with pytest.raises(OutputError, match="Choose a folder, not a file, with --out"):
        export(tiny_clip, tmp_path / "photos" / "mine.png", overwrite=True)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["mine.png"]


def test_an_earlier_export_is_replaced_as_a_whole_when_told_so(
    tiny_clip: Path, tmp_path: Path
) -> None:
    export(tiny_clip, tmp_path / "out", to="sentence-transformers")
    with pytest.raises(OutputError, match=r"already holds an export.*--overwrite"):
        export(tiny_clip, tmp_path / "out")
    export(tiny_clip, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "modules.json").exists()
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_a_place_for_an_export(tiny_clip: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export(tiny_clip, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").exists()


def test_an_export_does_not_replace_what_it_is_made_from(tiny_clip: Path, tmp_path: Path) -> None:
    export(tiny_clip, tmp_path / "out")
    with pytest.raises(OutputError, match="--overwrite would remove"):
        export(tmp_path / "out", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_an_export_that_fails_leaves_the_earlier_one(tiny_clip: Path, tmp_path: Path) -> None:
    export(tiny_clip, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ModelError, match="projected embedding alone"):
        export(tiny_clip, tmp_path / "out", to="sentence-transformers", embedding="pooled",
               overwrite=True)  # fmt: skip
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@posix_only
@pytest.mark.parametrize(
    "to",
    ["transformers", "sentence-transformers", pytest.param("onnx", marks=pytest.mark.slow)],
)
def test_a_full_disk_leaves_nothing_behind(to: str, tiny_clip: Path, tmp_path: Path) -> None:
    with (
        disk_with_room_for(50_000),
        pytest.raises(OutputError, match=r"cannot write .*Free some room"),
    ):
        export(tiny_clip, tmp_path / "new/out", to=to)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("to", "package", "install"),
    [
        ("onnx", "onnx", "lookalike[onnx]"),
        ("onnx", "onnxruntime", "lookalike[onnx]"),
        ("onnx", "onnxscript", "lookalike[onnx]"),
        ("sentence-transformers", "sentence_transformers", "lookalike[sentence-transformers]"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_line_that_installs_it(
    to: str, package: str, install: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError) as told:
        export(tmp_path / "no-such-model.pth", tmp_path / "out", to=to)
    assert f"pip install '{install}'" in str(told.value)


def test_what_cannot_be_exported_is_told(tiny_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to export: give a checkpoint"):
        export(None, tmp_path / "out")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        export(tmp_path / "no-such.pth", tmp_path / "out")
    with pytest.raises(ModelError, match="no folder or checkpoint"):
        export(tmp_path / "no-such-folder", tmp_path / "out")
    shutil.copytree(tiny_clip, tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ModelError, match="cannot load a model from the folder"):
        export(tmp_path / "half", tmp_path / "out")
    assert not (tmp_path / "out").exists()
