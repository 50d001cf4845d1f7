"""Loading a backbone by name: from the hub, from a Transformers folder, from our checkpoints."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from lookalike.data.transforms import Preprocessing
from lookalike.errors import CheckpointError, ModelError, first_line, nearest
from lookalike.files import shown
from lookalike.model.preprocessing import preprocessing_from

CHECKPOINT_FORMAT = "lookalike-checkpoint-4"
# They hold a whole model, but not all that training needs to go on exactly.
_EARLIER_FORMATS = tuple(f"lookalike-checkpoint-{number}" for number in (1, 2, 3))
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Small files that make a checkpoint whole: with them it can be exported, and its text
# tower used, where the model it came from is out of reach.
_SIDE_FILES = (
    "config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "spiece.model",
)  # fmt: skip
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_LOADING_ERRORS = (
    OSError, ValueError, RuntimeError, ImportError, KeyError, AttributeError, SafetensorError,
)  # fmt: skip
# What people mean by a name that is not to be had.
_WELL_KNOWN = (
    "openai/clip-vit-large-patch14-336", "openai/clip-vit-large-patch14",
    "openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16", "facebook/dinov2-small",
    "facebook/dinov2-base", "facebook/dinov2-large", "google/siglip-base-patch16-224",
)  # fmt: skip
_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True)
class Pretrained:
    """A backbone with all that is needed to use it."""

    backbone: PreTrainedModel
    preprocessing: Preprocessing
    pool: str  # "pooler": the backbone's own pooled output; "cls": its first token; "mean": of all
    side_files: dict[str, str | bytes]  # by name; bytes of what is no text
    hub_id: str | None = None  # of the model it began as, where it came from the hub

    def description(self) -> dict[str, Any]:
        """Returns all that it takes, beside the weights, to build this backbone again."""
        return {
            "backbone_class": type(self.backbone).__name__,
            "backbone_config": json.loads(self.backbone.config.to_json_string(use_diff=False)),
            "preprocessing": asdict(self.preprocessing),
            "pool": self.pool,
            "side_files": self.side_files,
            "hub_id": self.hub_id,
        }


def load_pretrained(model_name: str) -> Pretrained:
    """Loads a vision model from a hub id or a Transformers folder, float32, with its text tower.

    Raises:
        ModelError: unknown, out of reach, without weights, or not a vision model.
    """
    path = Path(model_name)
    if not path.is_dir() and not _HUB_ID.fullmatch(model_name):
        raise ModelError(
            f"there is no folder or checkpoint {shown(model_name)}, and it is not a valid hub id; "
            "give an existing path, or a name such as openai/clip-vit-base-patch32"
        )
    with quiet_transformers():
        config = _load_part(AutoConfig.from_pretrained, model_name)
        folder = path if path.is_dir() else _side_files_from_hub(model_name, config)
        _check_sees_images(config, model_name)
        processor = _load_processor(model_name, folder)
        # A CLIP vision tower saved with its projection, without text, is not what AutoModel loads.
        tower = CLIPVisionModelWithProjection.__name__ in (config.architectures or ())
        load: Any = (CLIPVisionModelWithProjection if tower else AutoModel).from_pretrained
        loading = {"dtype": torch.float32, "output_loading_info": True}
        backbone, found = _load_part(load, model_name, **loading)
    missing = sorted(found["missing_keys"])
    only_pooler = bool(missing) and all("pooler" in key for key in missing)
    if missing and not only_pooler:
        raise ModelError(
            f"the weights of {model_name} are incomplete: {len(missing)} tensors are missing, "
            f"such as {missing[0]}. Download the model again"
        )
    # Weights are views into the file, where they begin anywhere; copied, they begin at multiples of
    # 64 bytes, as those from a checkpoint do. On a CPU that decides how a matrix of one row is
    # multiplied, and so rounded.
    for tensor in (*backbone.parameters(), *backbone.buffers()):
        tensor.data = tensor.data.clone()
    return Pretrained(
        backbone,
        preprocessing_from(processor, model_name),
        pool="cls" if only_pooler else "pooler",
        side_files=_read_side_files(folder),
        hub_id=None if path.is_dir() else model_name,
    )


def has_tokenizer(side_files: Mapping[str, str | bytes]) -> bool:
    """Returns True if a model's small text files hold a whole tokenizer."""
    return "tokenizer.json" in side_files or {"vocab.json", "merges.txt"} <= set(side_files)


def is_checkpoint(model_name: str) -> bool:
    """Returns True if a name means a checkpoint file, which need not exist, not a model."""
    return Path(model_name).is_file() or model_name.endswith(".pth")


def chosen_embedding(
    asked: Literal["auto", "projected", "pooled"], checkpoint: Mapping[str, Any] | None
) -> Literal["projected", "pooled"]:
    """Returns the embedding that is meant: "auto" is the one that a checkpoint was trained for."""
    if asked != "auto":
        return asked
    return checkpoint["model"]["embedding"] if checkpoint else "projected"


def from_checkpoint(checkpoint: dict[str, Any], path: str) -> Pretrained:
    """Returns the backbone that a Lookalike checkpoint holds; the caller loads its weights."""
    model = checkpoint["model"]
    how = model["preprocessing"]
    how = how | {name: tuple(how[name]) for name in ("mean", "std")}
    try:
        settings = dict(model["backbone_config"])
        config = CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
        with quiet_transformers():
            if model["backbone_class"] == CLIPVisionModelWithProjection.__name__:
                backbone = CLIPVisionModelWithProjection._from_config(config)
            else:
                backbone = AutoModel.from_config(config)
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{shown(path)} holds a {model.get('backbone_class')} that this release of "
            f"Transformers cannot build ({error}); install the release it was saved with"
        ) from error
    side_files, hub_id = dict(model["side_files"]), model.get("hub_id")
    return Pretrained(backbone.float(), Preprocessing(**how), model["pool"], side_files, hub_id)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Returns the content of a Lookalike checkpoint, on the CPU. No pickled code is ever run.

    Those that earlier versions of Lookalike wrote are read as well; their `format` tells them.

    Raises:
        CheckpointError: not ours, not whole, or not there.
    """
    try:
        with open(path, "rb") as file:  # torch cannot open every name that Python can
            checkpoint: Any = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {shown(path)}") from error
    # Bytes that are no checkpoint fail in the unpickler in every way there is.
    except Exception as error:
        raise CheckpointError(
            f"{shown(path)} is not a Lookalike checkpoint, or incomplete; "
            "expected a weights/encoder_epoch_XX.pth that lookalike train wrote"
        ) from error
    found = checkpoint.get("format") if isinstance(checkpoint, dict) else None
    if not isinstance(checkpoint, dict) or found not in (CHECKPOINT_FORMAT, *_EARLIER_FORMATS):
        raise CheckpointError(
            f"{shown(path)} is not a Lookalike checkpoint (format {found!r}, expected "
            f"{CHECKPOINT_FORMAT!r}); give a weights/encoder_epoch_XX.pth that lookalike train "
            "wrote, or a Transformers folder"
        )
    return checkpoint


def _load_part(load: Callable[..., _Loaded], name: str, **options: Any) -> _Loaded:
    """Loads with one `from_pretrained`: from this disk first, from the hub only if that fails."""
    if not os.path.isdir(name):
        try:
            return load(name, local_files_only=True, **options)
        except (OSError, ValueError):
            pass  # not fetched yet, or not all of it: ask the hub
    try:
        return load(name, **options)
    except _LOADING_ERRORS as error:
        raise ModelError(_why_not_loaded(name, error)) from error


def _why_not_loaded(name: str, error: Exception) -> str:
    if os.path.isdir(name):
        of_run = sorted(path for at in ("", "weights/") for path in Path(name).glob(f"{at}*.pth"))
        if of_run:
            return (f"{shown(name)} is a run's folder, not a model; give one of its checkpoints: "
                    f"{shown(of_run[-1])}")  # fmt: skip
        return (
            f"cannot load a model from the folder {shown(name)}: {first_line(error)}. It needs "
            "what save_pretrained writes: config.json, preprocessor_config.json, model.safetensors"
        )
    last = {known.partition("/")[2]: known for known in _WELL_KNOWN}
    near = None if name in _WELL_KNOWN else nearest(name.partition("/")[2] or name, last, 0.9)
    return (
        f"the model {name} is not on this disk and cannot be downloaded ({first_line(error)}). "
        f"{f'Did you mean {last[near]}?' if near else 'Check the name and the connection.'} "
        "--model-name takes a hub id, a Transformers folder, or a Lookalike checkpoint (.pth)"
    )


def _check_sees_images(config: PreTrainedConfig, name: str) -> None:
    """Raises for models that do not take one image and give one embedding."""
    if type(config) not in AutoModel._model_mapping:
        raise ModelError(f"{name} ({config.model_type}) is not a model that AutoModel loads")
    model_class: Any = AutoModel._model_mapping[type(config)]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    two_towers = hasattr(config, "vision_config") and hasattr(config, "text_config")
    if model_class.main_input_name != "pixel_values" and not (
        two_towers and hasattr(model_class, "get_image_features")
    ):
        raise ModelError(
            f"{name} ({config.model_type}) does not turn an image into one embedding; use a "
            "CLIP, SigLIP or DINOv2 model, or another that AutoModel loads from pixels"
        )


def _load_processor(name: str, folder: Path) -> dict[str, Any]:
    """Returns the image processor's configuration with its class's defaults filled in."""
    file = folder / "preprocessor_config.json"
    raw = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if raw.get("image_processor_type", "").startswith("DINOv3ViT"):
        return dict(raw)  # has no Pillow processor to ask; its own file says everything
    if not raw and not (folder / "processor_config.json").is_file():
        raise ModelError(
            f"{shown(name)} has no preprocessor_config.json, so how to prepare images for it "
            "is unknown; copy that file from the model it was made from"
        )
    settings = _load_part(AutoImageProcessor.from_pretrained, name, backend="pil").to_dict()
    # Without torchvision Transformers names its stand-in class; the file's own name is the rule.
    return {**settings, **{k: v for k, v in raw.items() if k == "image_processor_type"}}


def _side_files_from_hub(name: str, config: PreTrainedConfig) -> Path:
    """Returns the folder in the hub's cache with a model's small files, fetched if need be."""
    from huggingface_hub import snapshot_download

    folder = Path(_load_part(snapshot_download, name, allow_patterns=list(_SIDE_FILES)))
    has_processor = any((folder / file).is_file() for file in _PROCESSOR_FILES)
    lacks_tokenizer = hasattr(config, "text_config") and not has_tokenizer(_read_side_files(folder))
    if has_processor and not lacks_tokenizer:
        return folder
    try:  # something of this model was fetched before, but not these files
        return Path(snapshot_download(name, allow_patterns=list(_SIDE_FILES)))
    except (OSError, ValueError, RuntimeError) as error:
        if has_processor:  # images need no more
            return folder
        raise ModelError(_why_not_loaded(name, error)) from error


def _read_side_files(folder: Path) -> dict[str, str | bytes]:
    files = [folder / name for name in _SIDE_FILES if (folder / name).is_file()]
    return {
        file.name: file.read_bytes() if file.suffix == ".model" else file.read_text("utf-8")
        for file in files
    }


def write_side_files(side_files: Mapping[str, str | bytes], folder: Path) -> None:
    """Puts a model's small files into a folder, such as one to load its tokenizer from."""
    for name, content in side_files.items():
        data = content.encode("utf-8") if isinstance(content, str) else content
        (folder / name).write_bytes(data)


def load_tokenizer(side_files: Mapping[str, str | bytes], model_name: str) -> Any:
    """Loads a model's tokenizer from its small files alone, which a checkpoint has as well."""
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        write_side_files(side_files, Path(folder))
        try:
            return AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
            # Its own class may ask for a package (sentencepiece) that tokenizer.json does without.
            if "tokenizer.json" not in side_files:
                what = f"the tokenizer of {model_name} cannot be built: {error}"
                raise ModelError(what) from error
            return PreTrainedTokenizerFast.from_pretrained(folder)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Holds back Transformers' remarks and bars: what matters in them becomes our errors."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
