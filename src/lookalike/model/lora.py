"""LoRA: low-rank changes of an encoder's linear layers, trained instead of the layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lookalike.errors import ConfigError, missing_extra
from lookalike.model.encoder import CLIPEncoder

_SCALE = 2  # of what is learned; fixed, so that the rank alone is to be chosen


def add_lora(encoder: CLIPEncoder, *, rank: int) -> None:
    """Gives the linear layers of attention a trainable change of low rank; freezes all else.

    W becomes W + 2 B A with A of `rank` rows, random, and B of as many columns, zero: the
    encoder gives the same embeddings at first (Hu et al., ICLR 2022, equation 3, alpha = 2 r).
    It is changed in place, where its layers are trained now.

    Raises:
        ConfigError: none of these layers is trained, or they are narrower than `rank`.
        MissingExtraError: `peft` is not installed.
    """
    names = _attention_layers(encoder)
    width = max(min(encoder.get_parameter(f"{name}.weight").shape) for name in names)
    if rank > width:
        raise ConfigError(f"lora_rank is {rank:,}; the layers of attention are {width:,} wide, and "
                          "a rank above that adds nothing")  # fmt: skip
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise missing_extra("lora_rank", "peft", "lora") from error
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
        with torch.no_grad():
            for layer in layers:
                layer.merge()
        yield
    finally:
        with torch.no_grad():
            for layer, weight in zip(layers, weights, strict=True):
                layer.unmerge()
                layer.base_layer.weight.copy_(weight)  # unmerging alone rounds


def plain_state_dict(encoder: CLIPEncoder) -> dict[str, Tensor]:
    """Returns the encoder's state under the names it has without LoRA; inside `merged`, merged."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in encoder.state_dict().items()
        if ".lora_" not in name
    }


def merged_state(encoder: CLIPEncoder) -> Iterator[tuple[str, Tensor]]:
    """Yields what `plain_state_dict` returns inside `merged`, by name, and changes no weight."""
    changed = {f"{name}.weight": layer for name, layer in _lora_layers(encoder) if not layer.merged}
    for name, tensor in sorted(plain_state_dict(encoder).items()):
        layer = changed.get(name)
        yield name, tensor if layer is None else tensor + layer.get_delta_weight("default")


def lora_matrices(encoder: CLIPEncoder) -> dict[str, Tensor]:
    """Returns all A and B of an encoder with LoRA, by their names in its state."""
    return {name: tensor for name, tensor in encoder.state_dict().items() if ".lora_" in name}


def layers_under_lora(encoder: CLIPEncoder) -> dict[str, Tensor]:
    """Returns weights and biases of the layers that LoRA changes, by their names in the state."""
    return {name: tensor for name, tensor in encoder.state_dict().items() if ".base_layer." in name}


@torch.no_grad()
def merge_for_good(encoder: CLIPEncoder) -> None:
    """Makes an encoder with LoRA a plain one that gives the same embeddings as inside `merged`."""
    for name, layer in list(_lora_layers(encoder)):
        layer.merge()
        parent, _, own_name = name.rpartition(".")
        setattr(encoder.get_submodule(parent), own_name, layer.base_layer)


def _lora_layers(encoder: CLIPEncoder) -> Iterator[tuple[str, Any]]:
    return ((name, part) for name, part in encoder.named_modules() if hasattr(part, "lora_A"))


def _attention_layers(encoder: CLIPEncoder) -> list[str]:
    """Returns the full names of the linear layers of attention that are trained."""
    found = []
    for name, module in encoder.named_modules():
        # `nn.MultiheadAttention` uses the weights of the layer inside of it itself.
        parent = encoder.get_submodule(name.rpartition(".")[0])
        is_whole = isinstance(module, nn.Linear) and not isinstance(parent, nn.MultiheadAttention)
        if is_whole and module.weight.requires_grad and ("attention" in name or "attn" in name):
            found.append(name)
    if not found:
        raise ConfigError(
            f"lora_rank changes the linear layers of attention, and {encoder.model_name} has none "
            "that are trained; set lora_rank to none"
        )
    return found
