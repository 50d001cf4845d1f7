"""LoRA: low-rank changes of an encoder's linear layers, trained instead of the layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lookalike.errors import ConfigError, MissingExtraError
from lookalike.model.encoder import CLIPEncoder

# What is learned counts this much. Fixed, so that the rank alone is to be chosen.
_SCALE = 2


def add_lora(encoder: CLIPEncoder, *, rank: int, targets: str) -> None:
    """Gives linear layers a trainable change of low rank, and freezes everything else.

    W becomes W + 2 B A with A of `rank` rows, random, and B of as many columns, zero: the
    encoder gives the same embeddings at first (Hu et al., ICLR 2022, equation 3, alpha = 2 r).

    Args:
        encoder: changed in place; its class stays. Only layers that are trained now are changed.
        rank: of the change.
        targets: "auto" for the linear layers of attention, or names with commas between them,
            such as "q_proj,v_proj".

    Raises:
        ConfigError: a name matches no linear layer that is trained; lists the names there are.
        MissingExtraError: `peft` is not installed.
    """
    names = _find_targets(encoder, targets)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("lora_rank needs peft: pip install 'lookalike[lora]'") from error
    config = LoraConfig(r=rank, lora_alpha=_SCALE * rank, target_modules=names)
    inject_adapter_in_model(config, encoder)
    encoder.train(encoder.training)  # the new parts as well


@contextmanager
def merged(encoder: CLIPEncoder) -> Iterator[None]:
    """Inside the block each W is W + 2 B A, and the encoder a plain one; afterwards all is, to
    the bit, as before. Does nothing to an encoder without LoRA, or inside another such block.
    """
    layers = [module for _, module in _lora_layers(encoder) if not module.merged]
    weights = [layer.base_layer.weight.detach().clone() for layer in layers]
    try:
        _merge(layers)
        yield
    finally:
        with torch.no_grad():
            for layer, weight in zip(layers, weights, strict=True):
                layer.unmerge()
                layer.base_layer.weight.copy_(weight)  # unmerging alone rounds


def plain_state_dict(encoder: CLIPEncoder) -> dict[str, Tensor]:
    """Returns the encoder's state under the names it has without LoRA; call it inside `merged`."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in encoder.state_dict().items()
        if ".lora_" not in name
    }


def lora_matrices(encoder: CLIPEncoder) -> dict[str, Tensor]:
    """Returns all A and B of an encoder with LoRA, by their names in its state."""
    return {name: tensor for name, tensor in encoder.state_dict().items() if ".lora_" in name}


def layers_under_lora(encoder: CLIPEncoder) -> dict[str, Tensor]:
    """Returns weights and biases of the layers that LoRA changes, by their names in the state."""
    return {name: tensor for name, tensor in encoder.state_dict().items() if ".base_layer." in name}


def merge_for_good(encoder: CLIPEncoder) -> None:
    """Makes an encoder with LoRA a plain one that gives the same embeddings as inside `merged`."""
    for name, layer in list(_lora_layers(encoder)):
        _merge([layer])
        parent, _, own_name = name.rpartition(".")
        setattr(encoder.get_submodule(parent), own_name, layer.base_layer)


@torch.no_grad()
def _merge(layers: list[Any]) -> None:
    for layer in layers:
        layer.merge()


def _lora_layers(encoder: CLIPEncoder) -> Iterator[tuple[str, Any]]:
    return ((name, part) for name, part in encoder.named_modules() if hasattr(part, "lora_A"))


def _find_targets(encoder: CLIPEncoder, targets: str) -> list[str]:
    """The full names of the linear layers that `targets` means."""
    names = list(_trained_linear_layers(encoder))
    there_are = ", ".join(sorted({name.rpartition(".")[2] for name in names})) or "none"
    if targets == "auto":
        found = [name for name in names if "attention" in name or "attn" in name]
        if not found:
            raise ConfigError(
                f"lora_targets is auto, which means the linear layers of attention, and "
                f"{encoder.model_name} has none that are trained; name others with "
                f"--lora-targets (there are: {there_are})"
            )
        return found
    found = []
    for target in (target.strip() for target in targets.split(",")):
        matching = [name for name in names if f".{name}".endswith(f".{target}")]
        if not matching:
            raise ConfigError(
                f"lora_targets has {target!r}, which matches no linear layer of "
                f"{encoder.model_name} that is trained; there are: {there_are}"
            )
        found += matching
    return list(dict.fromkeys(found))


def _trained_linear_layers(encoder: CLIPEncoder) -> Iterator[str]:
    """Names; without those inside `nn.MultiheadAttention`, which uses their weights itself."""
    for name, module in encoder.named_modules():
        parent = encoder.get_submodule(name.rpartition(".")[0])
        is_own = isinstance(parent, nn.MultiheadAttention)
        if isinstance(module, nn.Linear) and module.weight.requires_grad and not is_own:
            yield name
