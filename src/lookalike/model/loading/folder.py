"""Loading a backbone by name: from the hub, or from a folder as Transformers or PEFT save it."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from lookalike.data.transforms import Preprocessing
from lookalike.errors import ModelError
from lookalike.files import briefly, shown
from lookalike.model.loading.adapter import (
    ADAPTER_FILES,
    base_of_adapter,
    is_adapter,
    merge_adapter,
    read_adapter,
)
from lookalike.model.loading.backbone import load_backbone
from lookalike.model.loading.recognise import check_is_model, has_model, read_json
from lookalike.model.loading.side_files import (
    PROCESSOR_FILES,
    SIDE_FILES,
    has_tokenizer,
    read_side_files,
)
from lookalike.model.loading.transformers import (
    NO_CODE,
    load_part,
    quiet_transformers,
    why_not_loaded,
)
from lookalike.model.preprocessing import preprocessing_from

_LONGEST_ID = 200  # characters
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class Pretrained:
    """A backbone with all that is needed to use it."""

    backbone: PreTrainedModel
    preprocessing: Preprocessing
    pool: str  # "pooler": the backbone's own pooled output; "cls": its first token; "mean": of all
    side_files: dict[str, str | bytes]  # by name; bytes of what is no text
    hub_id: str | None = None  # of the model it began as, where it came from the hub
    folder: Path | None = None  # that its small files lie in, where they do
    adapted: str | None = None  # the model that a LoRA adapter was merged into

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
    """Loads a vision model from a hub id or a folder, float32, with its text tower if it has one.

    A folder is one that Transformers saves a model in; or PEFT a LoRA adapter, which is merged into
    the model that it was trained for. Of a classifier the vision model is taken. Code that comes
    with a model is never run.

    Raises:
        ModelError: unknown, out of reach, incomplete, or not a vision model; it says what a folder
            of another kind is.
    """
    path = Path(model_name)
    with quiet_transformers():
        _check_name(model_name)
        adapter = path if path.is_dir() else _adapter_from_hub(model_name)
        loaded = (
            _load_adapted(adapter, model_name)
            if adapter is not None and is_adapter(adapter)
            else _load(model_name)
        )
    # Weights are views into the file, where they begin anywhere; copied, they begin at multiples of
    # 64 bytes, as those from a checkpoint do. On a CPU that decides how a matrix of one row is
    # multiplied, and so rounded.
    for tensor in (*loaded.backbone.parameters(), *loaded.backbone.buffers()):
        tensor.data = tensor.data.clone()
    return loaded


def _check_name(name: str) -> None:
    """Raises ModelError for what is neither a folder nor can be a hub id."""
    may_be_on_hub = len(name) <= _LONGEST_ID and _HUB_ID.fullmatch(name)
    if not os.path.isdir(name) and not may_be_on_hub:
        raise ModelError(
            f"there is no folder or checkpoint {briefly(name)}, and it is not a valid hub id; "
            "give an existing path, or a name such as openai/clip-vit-base-patch32"
        )


def _load(name: str) -> Pretrained:
    """Loads a model as it is, without an adapter."""
    _check_name(name)
    path = Path(name)
    if path.is_dir():
        check_is_model(path, name)
    config = load_part(AutoConfig.from_pretrained, name, **NO_CODE)
    config._attn_implementation = None  # a wish for kernels is one for code from the hub
    folder = path if path.is_dir() else _side_files_from_hub(name, config)
    _check_sees_images(config, name)
    preprocessing = preprocessing_from(_load_processor(name, folder), name)
    backbone, missing = load_backbone(name, config)
    only_pooler = bool(missing) and all("pooler" in key for key in missing)
    if missing and not only_pooler:
        raise ModelError(
            f"the weights of {name} are incomplete: {len(missing)} tensors are missing, "
            f"such as {missing[0]}. Download the model again"
        )
    return Pretrained(
        backbone,
        preprocessing,
        pool="cls" if only_pooler else "pooler",
        side_files=read_side_files(folder),
        hub_id=None if path.is_dir() else name,
        folder=folder,
    )


def _load_adapted(folder: Path, name: str) -> Pretrained:
    """Loads the model that a LoRA adapter was trained for, with the adapter merged into it."""
    adapter = read_adapter(folder, name)
    base = name if has_model(folder) else base_of_adapter(adapter, folder, name)
    is_other = base != name and os.path.isdir(base)
    if is_other and is_adapter(Path(base)) and not has_model(Path(base)):
        raise ModelError(
            f"{shown(name)} is an adapter of {shown(base)}, which is an adapter itself; merge that "
            "one first, and save what comes of it"
        )
    try:
        loaded = _load(base)
    except ModelError as error:
        if base == name:
            raise
        raise ModelError(
            f"{shown(name)} is a PEFT adapter without its base model {briefly(base)}, which cannot "
            f"be loaded: {error}. Copy config.json, model.safetensors and "
            "preprocessor_config.json of that model into the folder"
        ) from error
    merge_adapter(loaded.backbone, adapter, name)
    own = read_side_files(folder)
    preprocessing = loaded.preprocessing
    if base != name and any(file in own for file in PROCESSOR_FILES):
        preprocessing = preprocessing_from(_load_processor(str(folder), folder), name)
    kept = {file: content for file, content in own.items() if file != "config.json"}
    of_both = {**loaded.side_files, **kept}
    whole = folder if has_tokenizer(own) else loaded.folder
    return replace(
        loaded, preprocessing=preprocessing, side_files=of_both, folder=whole, adapted=base
    )


def _adapter_from_hub(name: str) -> Path | None:
    """Returns the folder in the hub's cache with an adapter that has no model beside it."""
    from huggingface_hub import snapshot_download

    with suppress(Exception):  # it is not on this disk, or no model
        AutoConfig.from_pretrained(name, local_files_only=True, **NO_CODE)
        return None
    try:
        return Path(snapshot_download(name, allow_patterns=[*ADAPTER_FILES, *SIDE_FILES]))
    except Exception:  # whatever it is, it will be said where the model is looked for
        return None


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
    raw = read_json(file) if file.is_file() else {}
    if str(raw.get("image_processor_type", "")).startswith("DINOv3ViT"):
        return dict(raw)  # has no Pillow processor to ask; its own file says everything
    if not raw and not (folder / "processor_config.json").is_file():
        raise ModelError(
            f"{shown(name)} has no preprocessor_config.json, so how to prepare images for it "
            "is unknown; copy that file from the model it was made from"
        )
    load: Any = AutoImageProcessor.from_pretrained
    settings = load_part(load, name, backend="pil", **NO_CODE).to_dict()
    # Without torchvision Transformers names its stand-in class; the file's own name is the rule.
    return {**settings, **{k: v for k, v in raw.items() if k == "image_processor_type"}}


def _side_files_from_hub(name: str, config: PreTrainedConfig) -> Path:
    """Returns the folder in the hub's cache with a model's small files, fetched if need be."""
    from huggingface_hub import snapshot_download

    folder = Path(load_part(snapshot_download, name, allow_patterns=list(SIDE_FILES)))
    has_processor = any((folder / file).is_file() for file in PROCESSOR_FILES)
    lacks_tokenizer = hasattr(config, "text_config") and not has_tokenizer(read_side_files(folder))
    if has_processor and not lacks_tokenizer:
        return folder
    try:  # something of this model was fetched before, but not these files
        return Path(snapshot_download(name, allow_patterns=list(SIDE_FILES)))
    except (OSError, ValueError, RuntimeError) as error:
        if has_processor:  # images need no more
            return folder
        raise ModelError(why_not_loaded(name, error)) from error
