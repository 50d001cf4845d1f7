"""Loading a backbone by name: from the hub, or from a folder as Transformers or PEFT save it."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
)

from lookalike.data.transforms import Preprocessing
from lookalike.errors import ModelError, first_line, nearest
from lookalike.files import briefly, shown
from lookalike.model.loading.adapter import (
    ADAPTER_FILES,
    base_of_adapter,
    is_adapter,
    merge_adapter,
    read_adapter,
)
from lookalike.model.loading.archive import DamagedError, check_archive
from lookalike.model.loading.quiet import quiet_transformers
from lookalike.model.loading.recognise import check_is_model, has_model, read_json
from lookalike.model.loading.side_files import (
    PROCESSOR_FILES,
    SIDE_FILES,
    has_tokenizer,
    read_side_files,
)
from lookalike.model.preprocessing import preprocessing_from

_MOST_OF_A_REASON = 300  # characters
_MOST_NEW = 10**8  # numbers of a model that its files need not hold, such as a pooler's
_LONGEST_ID = 200  # characters
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
# Neither run nor asked about, wherever it comes from.
_NO_CODE = {"trust_remote_code": False}
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
    config = _load_part(AutoConfig.from_pretrained, name, **_NO_CODE)
    config._attn_implementation = None  # a wish for kernels is one for code from the hub
    folder = path if path.is_dir() else _side_files_from_hub(name, config)
    _check_sees_images(config, name)
    preprocessing = preprocessing_from(_load_processor(name, folder), name)
    backbone, missing = _load_backbone(name, config)
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


def _load_backbone(name: str, config: PreTrainedConfig) -> tuple[Any, list[str]]:
    """Returns the model, and the names of its weights that are not there.

    Raises:
        ModelError: the weights are damaged, or of other sizes than the configuration says.
    """
    # A CLIP vision tower saved with its projection, without text, is not what AutoModel loads.
    projects = CLIPVisionModelWithProjection.__name__ in (config.architectures or ())
    load: Any = AutoModel.from_pretrained
    if projects:
        load = CLIPVisionModelWithProjection.from_pretrained
    elif any(str(one).endswith("ForImageClassification") for one in config.architectures or ()):
        # A classifier has one tower, also where its configuration tells of two.
        config = getattr(config, "vision_config", None) or config
    options: dict[str, Any] = {} if projects else dict(_NO_CODE)
    if os.path.isdir(name):
        _check_bins(Path(name))
        plan: Any = (
            CLIPVisionModelWithProjection._from_config
            if projects
            else partial(AutoModel.from_config, **_NO_CODE)
        )
        with torch.device("meta"):  # without memory, of which a hostile one may want all
            planned = _load_part(lambda _: plan(deepcopy(config)), name)
        _check_memory(planned, Path(name))
        # Transformers would put an adapter beside the weights; it does not find it elsewhere.
        options["adapter_kwargs"] = {"subfolder": "no-adapter"}
    backbone, found = _load_part(
        load, name, config=config, dtype=torch.float32, output_loading_info=True,
        ignore_mismatched_sizes=True, **options,
    )  # fmt: skip
    if getattr(backbone, "_hf_peft_config_loaded", False):
        raise ModelError(
            f"{shown(name)} holds a model with an adapter beside it; download it (hf download "
            "... --local-dir FOLDER) and give the folder, or merge the two with PEFT"
        )
    for tensor, has, wants in sorted(found["mismatched_keys"]):
        raise ModelError(
            f"the weights of {name} are not of the size that its config.json says: {tensor} is of "
            f"{list(has)}, expected {list(wants)}. Copy the config.json of the model that the "
            "weights are of"
        )
    missing, unknown = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if missing and len(missing) == len(backbone.state_dict()):
        raise ModelError(
            f"the weights of {shown(name)} are not of the {config.model_type} model that its "
            f"config.json describes: there is no {missing[0]} among them, but "
            f"{shown(unknown[0])[:200] if unknown else 'nothing'}. Take the model in Transformers' "
            "format"
        )
    lists = tuple(
        f"{at}." for at, part in backbone.named_modules() if isinstance(part, nn.ModuleList)
    )
    if beyond := [one for one in unknown if one.startswith(lists)]:
        raise ModelError(
            f"the weights of {shown(name)} have more layers than its config.json says: "
            f"{shown(beyond[0])[:200]} has no place in it. Copy the config.json of the model that "
            "the weights are of"
        )
    return backbone, missing


def _check_memory(planned: nn.Module, folder: Path) -> None:
    """Raises ModelError where a model is of far more numbers than its files can hold."""
    count = sum(one.numel() for one in (*planned.parameters(), *planned.buffers()))
    files = (*folder.glob("*.safetensors"), *folder.glob("*.bin"))
    size = sum(file.stat().st_size for file in files)
    if count > 2 * size + _MOST_NEW:  # four bits are the least that any format has for a number
        raise ModelError(
            f"the weights of {shown(folder)} are not of the size that its config.json says: it "
            f"describes a model of {count:,} numbers, and they take {size:,} bytes. Copy the "
            "config.json of the model that the weights are of"
        )


def _check_bins(folder: Path) -> None:
    """Raises ModelError where weights in the older format do not have the checksums they hold."""
    if (folder / "model.safetensors").is_file():
        return
    for file in sorted(folder.glob("pytorch_model*.bin")):
        try:
            check_archive(file)
        except DamagedError as error:
            raise ModelError(f"{shown(file)}: {error}. Download the model again") from error


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
        AutoConfig.from_pretrained(name, local_files_only=True, **_NO_CODE)
        return None
    try:
        return Path(snapshot_download(name, allow_patterns=[*ADAPTER_FILES, *SIDE_FILES]))
    except Exception:  # whatever it is, it will be said where the model is looked for
        return None


def _load_part(load: Callable[..., _Loaded], name: str, **options: Any) -> _Loaded:
    """Loads with one `from_pretrained`: from this disk first, from the hub only if that fails."""
    if not os.path.isdir(name):
        try:
            return load(name, local_files_only=True, **options)
        except (OSError, ValueError):
            pass  # not fetched yet, or not all of it: ask the hub
    try:
        return load(name, **options)
    # What files of unknown origin make Transformers, its parsers and unpicklers raise is nearly
    # everything there is.
    except Exception as error:
        raise ModelError(_why_not_loaded(name, error)) from error


def _why_not_loaded(name: str, error: Exception) -> str:
    why = shown(first_line(error))
    if "trust_remote_code" in str(error):
        return (
            f"{shown(name)} needs code of its own, which comes with it and is never run here; take "
            "a model of a kind that Transformers has itself, such as CLIP, SigLIP or DINOv2"
        )
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return (
            f"the weights of {shown(name)} (pytorch_model.bin) hold more than tensors, which may "
            "be code and is never run, or are damaged; take the model with a model.safetensors"
        )
    if isinstance(error, SafetensorError):
        return (
            f"cannot load a model from the folder {shown(name)}: its weights (model.safetensors) "
            f"are damaged or cut off ({why}); download the model again"
        )
    if os.path.isdir(name):
        why = shown(" ".join(str(error).split()))[:_MOST_OF_A_REASON].rstrip(".")
        return (
            f"cannot load a model from the folder {shown(name)}: {why}. It needs "
            "what save_pretrained writes: config.json, preprocessor_config.json, model.safetensors"
        )
    last = {known.partition("/")[2]: known for known in _WELL_KNOWN}
    near = None if name in _WELL_KNOWN else nearest(name.partition("/")[2] or name, last, 0.9)
    return (
        f"the model {name} is not on this disk and cannot be downloaded ({why}). "
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
    raw = read_json(file) if file.is_file() else {}
    if str(raw.get("image_processor_type", "")).startswith("DINOv3ViT"):
        return dict(raw)  # has no Pillow processor to ask; its own file says everything
    if not raw and not (folder / "processor_config.json").is_file():
        raise ModelError(
            f"{shown(name)} has no preprocessor_config.json, so how to prepare images for it "
            "is unknown; copy that file from the model it was made from"
        )
    load: Any = AutoImageProcessor.from_pretrained
    settings = _load_part(load, name, backend="pil", **_NO_CODE).to_dict()
    # Without torchvision Transformers names its stand-in class; the file's own name is the rule.
    return {**settings, **{k: v for k, v in raw.items() if k == "image_processor_type"}}


def _side_files_from_hub(name: str, config: PreTrainedConfig) -> Path:
    """Returns the folder in the hub's cache with a model's small files, fetched if need be."""
    from huggingface_hub import snapshot_download

    folder = Path(_load_part(snapshot_download, name, allow_patterns=list(SIDE_FILES)))
    has_processor = any((folder / file).is_file() for file in PROCESSOR_FILES)
    lacks_tokenizer = hasattr(config, "text_config") and not has_tokenizer(read_side_files(folder))
    if has_processor and not lacks_tokenizer:
        return folder
    try:  # something of this model was fetched before, but not these files
        return Path(snapshot_download(name, allow_patterns=list(SIDE_FILES)))
    except (OSError, ValueError, RuntimeError) as error:
        if has_processor:  # images need no more
            return folder
        raise ModelError(_why_not_loaded(name, error)) from error
