"""What a file or a folder is that is no model to us: named, with what to do about it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lookalike.errors import ModelError, first_line
from lookalike.files import shown
from lookalike.model.loading import schema
from lookalike.model.loading.archive import no_content

WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip
_MOST_LABELS = 100_000  # of a classifier
_MOST_LAYERS = 1000  # where the weights do not tell how many there can be
_NEEDS = (
    "a Transformers folder holds what save_pretrained writes: config.json, "
    "preprocessor_config.json, model.safetensors"
)
_OPEN_CLIP = (
    "an OpenCLIP model, which Transformers does not read; take the same model in Transformers' "
    "format (most are on the hub, such as laion/CLIP-ViT-B-32-laion2B-s34B-b79K), or convert it "
    "with Transformers' convert_clip_original_pytorch_to_hf.py"
)
_TIMM = (
    "a timm model, which needs timm to be built; take the same model in Transformers' format, such "
    "as facebook/dinov2-base"
)
_TF = (
    "saved with TensorFlow or Flax weights alone; load it once with from_tf=True or from_flax=True "
    "in Transformers 4 and save it, which writes model.safetensors"
)
# By a pattern of names in a folder, in the order in which they are looked for.
_FOLDERS = (
    ("open_clip_*", _OPEN_CLIP),
    ("model_index.json", "a Diffusers pipeline; give the folder of its image encoder, if any"),
    ("*.gguf", "of llama.cpp (GGUF), which embeds no images here; take the original model"),
    ("tf_model.h5", _TF),
    ("flax_model.msgpack", _TF),
    ("saved_model.pb", _TF),
    ("*.ckpt.index", _TF),
    ("*.onnx", "an ONNX graph; give the checkpoint or the Transformers folder that it was made of"),
    ("openvino_model.xml", "an OpenVINO graph; give the model that it was made of"),
    ("*.mlpackage", "a Core ML model; give the model that it was made of"),
)  # fmt: skip
# By how a file begins.
_FILES = (
    (b"GGUF", "it is a GGUF file of llama.cpp"),
    (b"\x89HDF", "it is an HDF5 file, such as weights of TensorFlow"),
    (b"\x80\x02", "it is a pickle of earlier PyTorch"),
    (b"\x80\x04", "it is a Python pickle"),
    (b"\xff\xd8\xff", "it is an image"),
    (b"\x89PNG", "it is an image"),
)


def what_file_it_is(path: Path, start: bytes, content: Any = None) -> str | None:
    """Returns what a file is that is no checkpoint of ours, in words; None where that is unknown.

    Args:
        start: how it begins.
        content: what `torch.load` gave, if anything.
    """
    for begins, what in _FILES:
        if start.startswith(begins):
            return what
    if start[8:9] == b"{":
        return "it is a safetensors file: give the folder that holds it, with its config.json"
    if path.suffix == ".onnx":
        return "it is an ONNX graph"
    if start.startswith(b"PK") and _is_torchscript(path):
        return "it is a TorchScript program, such as OpenAI's own CLIP files"
    if not isinstance(content, Mapping):
        return None
    if "pytorch-lightning_version" in content:
        return "it is a checkpoint of PyTorch Lightning"
    weights = content.get("state_dict", content.get("model", content))
    weights = weights if isinstance(weights, Mapping) else {}
    names = [name.removeprefix("module.") for name in weights if isinstance(name, str)]
    if {"visual.conv1.weight", "visual.proj", "visual.trunk.pos_embed"} & set(names):
        return "it holds weights of OpenCLIP"
    if {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} & set(names):
        return "it holds weights of timm or of a model's original code"
    if weights and all(isinstance(value, Tensor) for value in weights.values()):
        return "it holds bare weights, without the configuration that says what they are of"
    return None


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # half an archive fails in many ways
        return False


def read_json(file: Path) -> dict[str, Any]:
    """Returns the mapping that a JSON file holds; raises ModelError where it holds none."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        why = no_content(file) or f"it is not JSON ({shown(first_line(error))})"
        raise ModelError(f"{shown(file)} cannot be read: {why}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{shown(file)} holds no mapping of settings; download it again")
    return content


def has_model(folder: Path) -> bool:
    """Returns True if a folder has the configuration and the weights of a model of any kind."""
    return (folder / "config.json").is_file() and any((folder / one).is_file() for one in WEIGHTS)


def check_is_model(folder: Path, name: str) -> None:
    """Raises ModelError where a folder is not one that Transformers loads: says what it is.

    Weights that are not there, or not whole, are found before the model is built.
    """
    config_file = folder / "config.json"
    config = read_json(config_file) if config_file.is_file() else {}
    has_weights = any((folder / one).is_file() for one in WEIGHTS)
    try:
        if "model_type" in config:
            schema.architecture(_MOST_LABELS)(config, "")
            layers = {key: value for key, value in config.items() if key != "num_labels"}
            schema.architecture(max(_num_tensors(folder), _MOST_LAYERS))(layers, "")
    except schema.MisfitError as error:
        raise ModelError(f"{shown(config_file)} is of no model: {error}") from error
    _check_parts(folder)
    if config.get("model_type") and has_weights:
        for file in _weight_files(folder):
            if why := no_content(file):
                raise ModelError(f"{shown(file)} holds no weights: {why}")
        return
    if what := _what_folder_it_is(folder, config):
        raise ModelError(f"{shown(name)} is {what}")
    if not config_file.is_file():
        raise ModelError(f"{shown(name)} has no config.json: {_NEEDS}")
    if not config.get("model_type") and not config.get("auto_map"):
        raise ModelError(
            f"{shown(config_file)} names no model_type, so what kind of model it is is unknown; "
            f"{_NEEDS}"
        )
    if not has_weights:
        raise ModelError(f"{shown(name)} has no weights (model.safetensors): {_NEEDS}")


def _weight_files(folder: Path) -> list[Path]:
    """Returns the files that Transformers reads, of those that lie in a model's folder."""
    first = next((one for one in WEIGHTS if (folder / one).is_file()), "")
    if not first.endswith(".json"):
        return [folder / first] if first else []
    names = read_json(folder / first).get("weight_map")
    return sorted({folder / str(part) for part in names.values()}) if names else []


def _num_tensors(folder: Path) -> int:
    """Returns how many tensors a folder's files hold, as far as they tell without being read."""
    count = 0
    for file in folder.glob("*.safetensors"):
        with suppress(OSError, SafetensorError), safe_open(file, "pt") as content:
            count += len(content.keys())
    return count


def _check_parts(folder: Path) -> None:
    """Raises ModelError where weights are in several files, and one of them is missing."""
    for index in (folder / one for one in WEIGHTS if one.endswith(".json")):
        if not index.is_file():
            continue
        names = read_json(index).get("weight_map")
        parts = set(map(str, names.values())) if isinstance(names, dict) else {""}
        for part in sorted(parts):
            if part in ("", ".", "..") or Path(part).name != part:  # it is no path to anywhere
                raise ModelError(f"{shown(index)} names no file of its folder: {shown(part)!r}")
            if not (folder / part).is_file():
                raise ModelError(
                    f"the weights of {shown(folder)} are incomplete: {shown(part)} is missing. "
                    "Download the model again"
                )


def _what_folder_it_is(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Returns what a folder is, and what to do; None where that is unknown."""
    of_run = sorted(path for at in ("", "weights/") for path in folder.glob(f"{at}*.pth"))
    if of_run:
        return f"a run's folder, not a model; give one of its checkpoints: {shown(of_run[-1])}"
    modules = folder / "modules.json"
    if modules.is_file():
        inside = [path for path in sorted(folder.glob("*")) if (path / "config.json").is_file()]
        where = next((path for path in inside if has_model(path)), None)
        return "a model of sentence-transformers; " + (
            f"give the folder of its first module: {shown(where)}"
            if where
            else "give the CLIP model that it was made of"
        )
    if "pretrained_cfg" in config or ("architecture" in config and "model_type" not in config):
        return _TIMM
    for pattern, what in _FOLDERS:
        if next(folder.glob(pattern), None) is not None:
            return what
    inner = [path for path in sorted(folder.glob("*")) if has_model(path)]
    if inner and not config:
        return f"a folder around a model; give {shown(inner[0])}"
    return None
