"""LoRA adapters as PEFT saves them, merged into the model that they were trained for.

Sources: Hu et al., "LoRA" (ICLR 2022), equation 3; Kalajdzievski, "rsLoRA" (2023); Liu et al.,
"DoRA" (ICML 2024), equation 5; the names in the file are PEFT's.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lookalike.errors import ModelError, first_line
from lookalike.files import shown
from lookalike.model.loading.archive import DamagedError, no_content, read_archive
from lookalike.model.loading.recognise import read_json

_SETTINGS, _WEIGHTS, _PICKLED = (
    "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin",
)  # fmt: skip
ADAPTER_FILES = (_SETTINGS, _WEIGHTS, _PICKLED)
# Ways to begin that leave the base model's weights as they are.
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "true", "false")
# Settings that are merged here, or that say how it was trained and change nothing by now. PEFT has
# other kinds of LoRA by settings of their own, and gets new ones.
_MERGED = frozenset({
    "peft_type", "r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora",
    "fan_in_fan_out", "modules_to_save", "bias", "base_model_name_or_path", "init_lora_weights",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout",
    "revision", "task_type", "auto_mapping", "inference_mode", "peft_version", "megatron_core",
    "loftq_config", "eva_config", "corda_config", "runtime_config", "qalora_group_size",
})  # fmt: skip
_MERGE = "merge it with PEFT (merge_and_unload), and save the model that comes of it"
_PREFIX = re.compile(r"(base_model\.model\.)?(.*)")
_CHANGE = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|"
    r"lora_magnitude_vector)(\.default)?(\.weight)?"
)


@dataclass(frozen=True)
class Adapter:
    """What an adapter's folder holds."""

    settings: dict[str, Any]
    weights: dict[str, Tensor]

    def scale_of(self, module: str, rank: int) -> float:
        """Returns the factor of a module's product: alpha / r, or alpha / sqrt(r) of rsLoRA."""
        patterns = (self.settings.get("alpha_pattern") or {}).items()
        of_its_own = (value for part, value in patterns if f".{module}".endswith(f".{part}"))
        alpha = next(of_its_own, self.settings.get("lora_alpha", 8))  # PEFT takes the first, too
        return float(alpha) / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)


def is_adapter(folder: Path) -> bool:
    """Returns True for a folder with a PEFT adapter in it."""
    return (folder / _SETTINGS).is_file()


def read_adapter(folder: Path, name: str) -> Adapter:
    """Reads an adapter's folder.

    Raises:
        ModelError: it is damaged, or not an adapter that can be merged here.
    """
    settings = read_json(folder / _SETTINGS)
    kind = settings.get("peft_type")
    variant = next(
        (shown(name)[:100] for name, value in settings.items() if value and name not in _MERGED),
        None,
    )
    reasons = {
        f"is a PEFT adapter of kind {shown(str(kind))[:40]}, and LoRA alone is merged here": (
            kind != "LORA"
        ),
        "began from weights that it changed itself "
        f"(init_lora_weights {shown(str(settings.get('init_lora_weights')))[:40]})": (
            settings.get("init_lora_weights", True) not in _PLAIN_STARTS
        ),
        f"is of a kind of LoRA that is not merged here ({variant})": variant is not None,
        "has settings that cannot be read (lora_alpha, alpha_pattern)": not _has_scales(settings),
    }
    for reason, applies in reasons.items():
        if applies:
            raise ModelError(f"{shown(name)} {reason}; {_MERGE}")
    return Adapter(settings, _read_weights(folder, name))


def base_of_adapter(adapter: Adapter, folder: Path, name: str) -> str:
    """Returns the name of the model that an adapter was trained for: a folder, from where we are
    or beside the adapter's, or a hub id.

    Raises:
        ModelError: the adapter does not say.
    """
    base = adapter.settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{shown(name)} is a PEFT adapter that does not name its base model; copy that model's "
            "config.json, model.safetensors and preprocessor_config.json into the folder"
        )
    near = [Path(base), folder / base, folder.resolve().parent / base]
    return next((str(path) for path in near if os.path.isdir(path)), base)


@torch.no_grad()
def merge_adapter(backbone: nn.Module, adapter: Adapter, name: str) -> None:
    """Changes a model's weights to what they are with the adapter: W + s B A, in place.

    Parts that the adapter holds whole (`modules_to_save`, biases) take the place of the model's; a
    head of theirs that the model has not, such as a classifier's, is left out.

    Raises:
        ModelError: the adapter was trained for another model.
    """
    modules, parameters = dict(backbone.named_modules()), dict(backbone.named_parameters())
    prefix = f"{getattr(backbone, 'base_model_prefix', '')}."

    def own_name(theirs: str, known: Any) -> str | None:
        """The name that a part of the adapter's model has in this one, which may be its tower."""
        inner = (theirs, theirs.removeprefix(prefix), theirs.removeprefix("vision_model."))
        return next((one for one in (*inner, f"vision_model.{theirs}") if one in known), None)

    changes: dict[str, dict[str, Tensor]] = {}
    heads = adapter.settings.get("modules_to_save") or ()
    for key, tensor in adapter.weights.items():
        theirs = _PREFIX.fullmatch(key)[2]  # type: ignore[index] # takes everything
        if change := _CHANGE.fullmatch(theirs):
            changes.setdefault(change["module"], {})[change["part"]] = tensor
            continue
        whole = re.sub(r"\.(base_layer|modules_to_save(\.default)?)\.", ".", theirs)
        mine = own_name(whole, parameters)
        if mine is not None and parameters[mine].shape == tensor.shape:
            parameters[mine].copy_(tensor)
        elif mine is not None or not _is_head(whole, heads):
            raise _for_another(name, whole)
    for theirs, parts in changes.items():
        mine = own_name(theirs, modules)
        module = modules.get(mine or "")
        weight = getattr(module, "weight", None)
        if mine is None or not isinstance(weight, Tensor):
            raise _for_another(name, theirs)
        turned = isinstance(module, Conv1D)  # a linear layer with its weight the other way round
        plain = weight.T if turned else weight
        try:
            plain.copy_(_merged(plain, parts, adapter, theirs))
        except (KeyError, IndexError, RuntimeError, ValueError, ArithmeticError) as error:
            raise _for_another(name, theirs) from error
    if not all(bool(p.isfinite().all()) for p in parameters.values()):
        raise ModelError(f"{shown(name)} makes weights that are not finite numbers; it is damaged")


def _merged(weight: Tensor, parts: dict[str, Tensor], adapter: Adapter, module: str) -> Tensor:
    """Returns a module's weight with its change; raises where shapes do not belong together."""
    parts = {name: tensor.float() for name, tensor in parts.items()}
    if "lora_embedding_A" in parts:
        a, b = parts["lora_embedding_A"], parts["lora_embedding_B"]
        change = (b @ a).T
    else:
        a, b = parts["lora_A"], parts["lora_B"]  # of convolutions: (r, in, h, w) and (out, r, 1, 1)
        change = b.flatten(1) @ a.flatten(1)
    if len(change) != len(weight):
        raise ValueError("another number of rows")
    merged = weight + adapter.scale_of(module, len(a)) * change.reshape(weight.shape)
    if (length := parts.get("lora_magnitude_vector")) is not None:  # DoRA: each row has a length
        rows = merged.flatten(1)
        rows = rows * (length.flatten() / rows.norm(dim=1))[:, None]
        merged = rows.reshape(weight.shape)
    return merged


def _has_scales(settings: dict[str, Any]) -> bool:
    """Returns True where all that scales are made of are numbers, for plainly named modules."""
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(re.fullmatch(r"[\w.]+", p) for p in patterns):
        return False
    alphas = [settings.get("lora_alpha", 8), *patterns.values()]
    return all(type(one) in (int, float) and abs(one) < 1e6 for one in alphas)


def _is_head(name: str, heads: Any) -> bool:
    """Returns True for a part that was trained whole, and that an encoder does not have."""
    known = [one for one in heads if isinstance(one, str)] if isinstance(heads, list) else []
    return any(part in (*known, "classifier", "score") for part in name.split("."))


def _read_weights(folder: Path, name: str) -> dict[str, Tensor]:
    file = next((folder / one for one in (_WEIGHTS, _PICKLED) if (folder / one).is_file()), None)
    if file is None:
        raise ModelError(
            f"{shown(name)} is a PEFT adapter without its weights ({_WEIGHTS}); download it again"
        )
    try:
        weights = safetensors.torch.load_file(file) if file.name == _WEIGHTS else read_archive(file)
    except (OSError, SafetensorError, DamagedError) as error:
        why = no_content(file) or shown(first_line(error))
        raise ModelError(f"{shown(file)} cannot be read: {why}; download it again") from error
    if not isinstance(weights, dict) or not weights:
        raise ModelError(f"{shown(file)} holds no weights; download it again")
    for key, tensor in weights.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise ModelError(f"{shown(file)} holds more than weights; take a {_WEIGHTS}")
    return weights


def _for_another(name: str, part: str) -> ModelError:
    return ModelError(
        f"the adapter {shown(name)} does not fit its base model: it changes {shown(part)[:200]}, "
        "which that model does not have in this form. Take the base model that it was trained for"
    )
