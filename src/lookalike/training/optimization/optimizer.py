"""AdamW and its groups of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from lookalike.config import TrainConfig
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.layers import find_layers

OBJECTIVE_LEARNING_RATE = 1e-3
"""Of what an objective brings, such as class centres: these begin at random, not pretrained."""


def make_optimizer(
    encoder: CLIPEncoder, config: TrainConfig, objective_parameters: Iterable[nn.Parameter] = ()
) -> torch.optim.AdamW:
    """Returns AdamW (Loshchilov and Hutter, ICLR 2019) of what is trained.

    Only weight matrices (and convolutions) are decayed, as BEiT (Bao et al., ICLR 2022) does it:
    shrinking biases, norms, position embeddings and class tokens does not regularise. (OpenCLIP and
    DINOv2, which train from nothing, do decay position embeddings; decision 9 says why not here.)

    With `layer_decay` the learning rate of layer l of n is `layer_decay ** (n + 1 - l)` times
    that of the head (ELECTRA, Clark et al., ICLR 2020; BEiT): the first layers know what all
    images have in common, and change least.

    Each group has, beside the settings of AdamW, its own share of the learning rate (`lr_share`).

    The `objective_parameters` are not decayed, and learn at a rate of their own.

    Raises:
        ModelError: `layer_decay` needs the encoder's layers, and they cannot be found.
    """
    share_of = _shares(encoder, config)
    embeddings = {
        f"{name}.weight" for name, part in encoder.named_modules() if isinstance(part, nn.Embedding)
    }  # of positions, in CLIP and SigLIP: rows of tokens, no matrix
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in encoder.trainable_parameters():
        is_matrix = name.endswith("weight") and parameter.ndim >= 2
        decays = is_matrix and name not in embeddings
        key = (share_of(name), config.weight_decay if decays else 0.0)
        groups.setdefault(key, []).append(parameter)
    settings: list[dict[str, Any]] = [
        {"params": groups[key], "weight_decay": key[1], "lr_share": key[0]}
        for key in sorted(groups, reverse=True)
    ]
    if objectives := list(objective_parameters):
        share = OBJECTIVE_LEARNING_RATE / config.learning_rate
        settings.append({"params": objectives, "weight_decay": 0.0, "lr_share": share})
    return torch.optim.AdamW(settings, lr=config.learning_rate, fused=True)


def _shares(encoder: CLIPEncoder, config: TrainConfig) -> Callable[[str], float]:
    """Returns the share of the learning rate that a parameter of a name has."""
    if config.layer_decay == 1:  # no layers are looked for: not every backbone tells them
        return lambda _: 1.0
    layers = find_layers(encoder, "layer_decay")
    return lambda name: config.layer_decay ** (layers.head - layers.of(name))
