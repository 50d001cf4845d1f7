"""The weights of a model's folder or hub id, checked against its configuration."""

from __future__ import annotations

import os
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, CLIPVisionModelWithProjection, PreTrainedConfig

from lookalike.errors import ModelError
from lookalike.files import shown
from lookalike.model.loading.archive import DamagedError, check_archive
from lookalike.model.loading.transformers import NO_CODE, load_part

_MOST_NEW = 10**8  # numbers of a model that its files need not hold, such as a pooler's


def load_backbone(name: str, config: PreTrainedConfig) -> tuple[Any, list[str]]:
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
    options: dict[str, Any] = {} if projects else dict(NO_CODE)
    if os.path.isdir(name):
        _check_bins(Path(name))
        plan: Any = (
            CLIPVisionModelWithProjection._from_config
            if projects
            else partial(AutoModel.from_config, **NO_CODE)
        )
        with torch.device("meta"):  # without memory, of which a hostile one may want all
            planned = load_part(lambda _: plan(deepcopy(config)), name)
        _check_memory(planned, Path(name))
        # Transformers would put an adapter beside the weights; it does not find it elsewhere.
        options["adapter_kwargs"] = {"subfolder": "no-adapter"}
    backbone, found = load_part(
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
