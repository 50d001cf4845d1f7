"""Folders and files of models: what loads, and what each of the others is told to be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.altered import some
from helpers.models import (
    SIZE_PX,
    SQUARE,
    TOWER,
    VISION,
    clip_processor,
    dinov2,
    save,
    vit,
)
from helpers.runs import SILENT
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPImageProcessorPil,
    Dinov2Config,
    Dinov2ForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipImageProcessorPil,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from lookalike.errors import CheckpointError, LookalikeError, ModelError, OutputError
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.text import embed_texts

Change = Callable[[Path], Any]


@pytest.fixture
def copied(tiny_clip: Path, tmp_path: Path) -> Path:
    """A copy of the tiny CLIP, to be changed."""
    return Path(shutil.copytree(tiny_clip, tmp_path / "model"))


def loaded(name: Path | str) -> CLIPEncoder:
    """A model as every verb loads it: to the length of its embeddings."""
    encoder = CLIPEncoder(str(name))
    assert encoder.dim > 0
    return encoder


def changed_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# --- Folders of other tools -----------------------------------------------------------------------


def of_open_clip(folder: Path) -> None:
    (folder / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 24}}')
    (folder / "open_clip_model.safetensors").write_bytes(b"x")


def of_sentence_transformers(folder: Path) -> None:
    inner = folder / "0_CLIPModel"
    inner.mkdir()
    (inner / "config.json").write_text("{}")
    (inner / "model.safetensors").write_bytes(b"x")
    (folder / "modules.json").write_text('[{"idx": 0, "path": "0_CLIPModel"}]')


def of_timm(folder: Path) -> None:
    (folder / "config.json").write_text('{"architecture": "vit_tiny", "pretrained_cfg": {}}')
    (folder / "model.safetensors").write_bytes(b"x")


def with_file(name: str, config: str | None = '{"model_type": "clip"}') -> Change:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(b"x")
        if config is not None:
            (folder / "config.json").write_text(config)

    return write


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (of_open_clip, "OpenCLIP"),
        (of_sentence_transformers, r"sentence-transformers; give .*0_CLIPModel"),
        (of_timm, "timm"),
        (with_file("tf_model.h5"), "TensorFlow or Flax"),
        (with_file("flax_model.msgpack"), "TensorFlow or Flax"),
        (with_file("model.gguf"), "GGUF"),
        (with_file("model.onnx", None), "ONNX"),
        (with_file("openvino_model.xml", None), "OpenVINO"),
        (with_file("model_index.json", None), "Diffusers"),
        (with_file("model.safetensors", None), r"no config\.json"),
        (with_file("model.safetensors", "{}"), "no model_type"),
        (with_file("notes.txt"), r"no weights \(model\.safetensors\)"),
        (lambda folder: None, r"no config\.json"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "no mapping"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\xfd"), "not JSON"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "not JSON"),
    ],
)
def test_a_folder_of_another_kind_is_told_what_it_is(
    make: Change, words: str, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    make(tmp_path / "model")
    with pytest.raises(ModelError, match=words) as caught:
        loaded(tmp_path / "model")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\x10\0\0\0\0\0\0\0{}              ", "safetensors file"),
        (b"\x80\x04\x95", "pickle"),
        ({"state_dict": {"visual.conv1.weight": torch.ones(1)}}, "OpenCLIP"),
        ({"state_dict": {}, "pytorch-lightning_version": "2"}, "Lightning"),
        ({"blocks.0.attn.qkv.weight": torch.ones(1)}, "timm"),
        ({"a": torch.ones(1), "b": torch.ones(1)}, "bare weights"),
        ([1, 2], "format unknown|format None"),
    ],
)
def test_a_file_of_another_kind_is_told_what_it_is(
    content: Any, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "some.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=words):
        loaded(path)


# --- Damage and code --------------------------------------------------------------------------


class Trap:
    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.sprung,))


def test_code_in_weights_is_not_run_and_the_line_advises_nothing_dangerous(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    torch.save({"x": Trap(copied / "sprung")}, copied / "pytorch_model.bin")
    with pytest.raises(ModelError, match="hold more than tensors") as caught:
        loaded(copied)
    assert "False" not in str(caught.value)
    assert not (copied / "sprung").exists()


def test_older_weights_are_compared_with_their_checksums(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    torch.save(weights, copied / "pytorch_model.bin")
    whole = (copied / "pytorch_model.bin").read_bytes()
    assert loaded(copied).dim == 24
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    (copied / "pytorch_model.bin").write_bytes(damaged)
    with pytest.raises(ModelError, match="checksum"):
        loaded(copied)
    (copied / "pytorch_model.bin").write_bytes(whole[:-1000])
    with pytest.raises(ModelError, match="cut off"):
        loaded(copied)


@pytest.mark.parametrize(
    "file", ["config.json", "preprocessor_config.json", "tokenizer_config.json"]
)
def test_code_that_comes_with_a_model_is_neither_run_nor_asked_about(
    file: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    code = f"open({str(copied / 'sprung')!r}, 'w')"
    (copied / "own.py").write_text(f"{code}\nclass Own: pass\n")
    kinds = {
        "config.json": ("AutoConfig", "AutoModel"),
        "preprocessor_config.json": ("AutoImageProcessor",),
        "tokenizer_config.json": ("AutoTokenizer",),
    }[file]
    own = {"auto_map": dict.fromkeys(kinds, "own.Own")}
    names = {"model_type": "own", "image_processor_type": "Own", "tokenizer_class": "Own"}
    changed_json(copied / file, **own, **names)
    try:
        embed_texts(loaded(copied), ["a"], progress=SILENT)
    except LookalikeError as error:
        message = str(error)
        assert message.isprintable()
        assert "trust_remote_code" not in message
    assert not (copied / "sprung").exists()


def test_damaged_files_of_a_model_end_in_one_line(tiny_clip: Path, tmp_path: Path) -> None:
    refused = 0
    for number, name in enumerate(["config.json", "preprocessor_config.json"] * 6):
        folder = Path(shutil.copytree(tiny_clip, tmp_path / str(number)))
        document = json.loads((folder / name).read_text())
        ((what, altered),) = some(document, 1, seed=number)
        try:
            (folder / name).write_text(json.dumps(altered))
        except TypeError:  # bytes and tensors are nothing to JSON
            continue
        message = None
        try:
            embed_texts(loaded(folder), ["a b"], progress=SILENT)
        except LookalikeError as error:
            message = str(error)
        if message is not None:
            refused += 1
            assert message.isprintable(), what
    assert refused > 3


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_weights_that_are_cut_off_are_told_as_such(share: float, copied: Path) -> None:
    content = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelError, match=r"\(model\.safetensors\) are damaged or cut off"):
        loaded(copied)


def test_weights_in_several_files_are_all_there_and_nowhere_else(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    halves = sorted(tensors)[:40], sorted(tensors)[40:]
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for file, names in zip(files, halves, strict=True):
        save_file({n: tensors[n] for n in names}, copied / file, metadata={"format": "pt"})
    index = copied / "model.safetensors.index.json"
    of_file = {n: file for file, names in zip(files, halves, strict=True) for n in names}

    def write(weight_map: Any) -> None:
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    write(of_file)
    assert loaded(copied).dim == 24
    for outside in (f"../{copied.name}/{files[0]}", str(copied / files[0]), ""):
        write(of_file | {halves[0][0]: outside})
        with pytest.raises(ModelError, match="names no file of its folder"):
            loaded(copied)
    write([1])
    with pytest.raises(ModelError, match="names no file of its folder"):
        loaded(copied)
    write(of_file)
    (copied / files[1]).unlink()
    with pytest.raises(ModelError, match=f"{files[1]} is missing"):
        loaded(copied)


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


def tower(folder: Path, which: str, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    changed_json(folder / "config.json", **{which: config[which] | changes})


@pytest.mark.parametrize("layers", [1, 0, -1])
def test_weights_of_more_layers_than_the_configuration_has_are_refused(
    layers: int, copied: Path
) -> None:
    tower(copied, "vision_config", num_hidden_layers=layers)
    with pytest.raises(ModelError, match=r"more layers than its config\.json says.*layers\."):
        CLIPEncoder(str(copied))


@pytest.mark.parametrize(
    ("which", "changes", "words"),
    [
        ("vision_config", {"intermediate_size": 3 * 10**6}, r"[34]\d\d,\d+,\d+ numbers"),
        ("text_config", {"vocab_size": 10**8}, r"numbers, and they take \d+,\d+ bytes"),
        ("text_config", {"num_hidden_layers": 2000}, "2000, expected 1,000 at most"),
    ],
)
def test_a_configuration_gets_no_more_memory_than_its_weights_can_fill(
    which: str, changes: dict[str, Any], words: str, copied: Path
) -> None:
    tower(copied, which, **changes)
    with pytest.raises(ModelError, match=words):
        CLIPEncoder(str(copied))


def test_weights_that_nobody_reads_may_be_pointers(copied: Path) -> None:
    (copied / "pytorch_model.bin").write_bytes(LFS_POINTER)
    (copied / "open_clip_pytorch_model.bin").write_bytes(LFS_POINTER)
    assert loaded(copied).has_text


def test_weights_under_the_names_of_another_tool_are_told_as_such(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    renamed = {f"visual.{name}": tensor for name, tensor in weights.items()}
    save_file(renamed, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no logit_scale among them, but visual\.logit_scale"):
        CLIPEncoder(str(copied))


@pytest.mark.parametrize("architectures", ["CLIPModel", [None], [1], [["x"]], {}])
def test_architectures_that_are_no_names_are_passed_over(architectures: Any, copied: Path) -> None:
    changed_json(copied / "config.json", architectures=architectures)
    assert loaded(copied).dim == 24


def damage_text_tower(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if name.startswith("text_model.final"):
            tensor.fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "tokenizer.json").write_bytes(LFS_POINTER),
         r"tokenizer\.json: it is a Git LFS pointer"),
        (lambda folder: tower(folder, "text_config", eos_token_id=None), "the text tower of"),
        (damage_text_tower, "no numbers: its weights are damaged"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_texts_is_named(change: Change, words: str, copied: Path) -> None:
    change(copied)
    with pytest.raises(ModelError, match=words):
        embed_texts(CLIPEncoder(str(copied)), ["a mug"], progress=SILENT)


def test_weights_that_are_no_numbers_are_refused(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] = float("nan")
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="no numbers"):
        loaded(copied)


# --- Parts that do not belong together --------------------------------------------------------


def test_weights_of_another_size_name_a_tensor_and_both_shapes(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    changed_json(copied / "config.json", vision_config=config["vision_config"] | {"image_size": 64})
    with pytest.raises(
        ModelError, match=r"position_embedding\.weight is of \[17, 32\].*\[65, 32\]"
    ):
        loaded(copied)


@pytest.mark.parametrize("px", [16, 64])
def test_a_processor_for_another_size_names_both(px: int, copied: Path) -> None:
    size = {"height": px, "width": px}
    CLIPImageProcessorPil(size={"shortest_edge": px}, crop_size=size).save_pretrained(copied)
    with pytest.raises(ModelError, match=f"{px}x{px} px .*takes {SIZE_PX}x{SIZE_PX} px"):
        loaded(copied)


def test_a_processor_of_another_size_is_right_for_a_model_that_takes_any(tmp_path: Path) -> None:
    folder = Path(dinov2(tmp_path / "model"))
    size = {"height": 48, "width": 48}
    CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size=size).save_pretrained(folder)
    assert loaded(folder).preprocessing.height == 48


def test_a_model_for_other_channels_says_so(tmp_path: Path) -> None:
    config = ViTConfig(**VISION, intermediate_size=64, num_channels=1)
    from transformers import ViTModel

    folder = save(tmp_path / "model", ViTModel(config), ViTImageProcessorPil(size=SQUARE))
    with pytest.raises(ModelError, match="takes images of 1 channels"):
        loaded(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_mean": [0.5]}, "expected 3 colour channels"),
        ({"image_mean": None}, "image_mean"),
        ({"image_std": [0.5, 0, 0.5]}, "is 0"),
        ({"resample": 77}, "resample"),
        ({"size": {"shortest_edge": -4}}, "shortest_edge"),
        ({"crop_size": {"height": 10**9, "width": 10**9}}, "crop_size"),
        ({"rescale_factor": "a lot"}, "rescale_factor"),
    ],
)
def test_settings_of_a_processor_that_cannot_be_are_named(
    changes: dict[str, Any], words: str, copied: Path
) -> None:
    changed_json(copied / "preprocessor_config.json", **changes)
    with pytest.raises(ModelError, match=words):
        loaded(copied)


def test_a_tokenizer_of_another_model_is_told(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    text = config["text_config"] | {"vocab_size": 3}
    changed_json(copied / "config.json", text_config=text)
    tensors = load_file(copied / "model.safetensors")
    name = "text_model.embeddings.token_embedding.weight"
    tensors[name] = tensors[name][:3].clone()
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="text tower"):
        embed_texts(loaded(copied), ["a red mug"], progress=SILENT)


# --- Classifiers ------------------------------------------------------------------------------


def clip_classifier(folder: Path) -> tuple[str, Any]:
    tower = {**TOWER, "intermediate_size": 64}
    config = CLIPConfig(vision_config={**VISION, **tower}, text_config={**tower, "vocab_size": 9})
    model = CLIPForImageClassification(config).eval()
    return save(folder, model, clip_processor()), model.vision_model


def siglip_classifier(folder: Path) -> tuple[str, Any]:
    text = {**TOWER, "intermediate_size": 64, "vocab_size": 50, "projection_size": 32}
    config = SiglipConfig(vision_config={**VISION, "intermediate_size": 64}, text_config=text)
    model = SiglipForImageClassification(config).eval()
    return save(folder, model, SiglipImageProcessorPil(size=SQUARE)), model.vision_model


def vit_classifier(folder: Path) -> tuple[str, Any]:
    model = ViTForImageClassification(ViTConfig(**VISION, intermediate_size=64)).eval()
    return save(folder, model, ViTImageProcessorPil(size=SQUARE)), model.vit


def dinov2_classifier(folder: Path) -> tuple[str, Any]:
    model = Dinov2ForImageClassification(Dinov2Config(**VISION)).eval()
    return save(folder, model, clip_processor()), model.dinov2


@pytest.mark.parametrize(
    "make", [clip_classifier, siglip_classifier, vit_classifier, dinov2_classifier]
)
def test_of_a_classifier_the_vision_model_is_taken(
    make: Callable[[Path], tuple[str, Any]], tmp_path: Path
) -> None:
    folder, tower = make(tmp_path / "model")
    pixels = torch.randn(2, 3, SIZE_PX, SIZE_PX)
    with torch.inference_mode():
        output = tower(pixel_values=pixels)
        has_pooler = getattr(output, "pooler_output", None) is not None
        rows = output.pooler_output if has_pooler else output.last_hidden_state[:, 0]
        encoder = loaded(folder)
        torch.testing.assert_close(encoder(pixels), normalize(rows, dim=-1), atol=1e-5, rtol=0)
    checkpoint = {"format": "lookalike-checkpoint-4", "epoch": 0, "model": encoder.description(),
                  "model_state_dict": encoder.state_dict()}  # fmt: skip
    torch.save(checkpoint, tmp_path / "one.pth")
    with torch.inference_mode():
        assert torch.equal(loaded(tmp_path / "one.pth")(pixels), encoder(pixels))


# --- Where the tokenizer is read --------------------------------------------------------------


def full(*_: Any, **__: Any) -> Any:
    raise OSError(28, "No space left on device")


def test_a_folders_tokenizer_needs_no_room_and_a_checkpoints_says_where_there_is_none(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = loaded(copied)
    checkpoint = {"format": "lookalike-checkpoint-4", "epoch": 0, "model": encoder.description(),
                  "model_state_dict": encoder.state_dict()}  # fmt: skip
    torch.save(checkpoint, tmp_path / "one.pth")
    again = loaded(tmp_path / "one.pth")
    monkeypatch.setattr("tempfile.TemporaryDirectory", full)
    words = ["a red mug"]
    ours = embed_texts(encoder, words, progress=SILENT)
    with pytest.raises(OutputError, match=r"TMPDIR"):
        embed_texts(again, words, progress=SILENT)
    monkeypatch.undo()
    assert torch.equal(ours, embed_texts(again, words, progress=SILENT))


def test_vit_without_damage_loads(tmp_path: Path) -> None:
    assert loaded(vit(tmp_path / "model")).dim == 32
