"""The layers of an encoder: found, frozen, without some patches, fastest on a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lookalike.errors import ConfigError, ModelError
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.preprocessing import num_patches
from lookalike.runtime.device import Runtime

_SHORT_SEQUENCE = 300  # patches
_OF_PATCHES = 1


@dataclass(frozen=True)
class Layers:
    """The layers of an encoder's vision side, from the pixels on.

    Layer 0 is what comes before the blocks (patch and position embeddings), 1 to `count` are the
    blocks, and `head` is what comes after them: last norms, pooling, projection.
    """

    count: int
    of_module: dict[str, int]  # by the module's name

    @property
    def head(self) -> int:
        """Returns the number of the layer after the last block."""
        return self.count + 1

    def of(self, parameter_name: str) -> int:
        """Returns the layer of a parameter, by its name in `named_parameters()`."""
        return self.of_module[parameter_name.rpartition(".")[0]]


def find_layers(encoder: CLIPEncoder, option: str) -> Layers:
    """Finds the layers of an encoder, trained or not.

    The blocks are the longest `ModuleList` that lies in no other one and that images pass
    through; modules are registered in the order in which they are used. For a backbone that
    shrinks its image in stages (ConvNeXt, Swin), a stage is a layer.

    Raises:
        ModelError: no one list is the longest; `option`, which needs to know, stands in it.
    """
    found = blocks(encoder, option)
    prefix = next(f"{name}." for name, module in encoder.named_modules() if module is found)
    of_module, number = {}, 0
    for name, _ in encoder.named_modules():
        if name.startswith(prefix):
            number = 1 + int(name.removeprefix(prefix).partition(".")[0])
        elif number > 0:
            number = len(found) + 1
        of_module[name] = number
    return Layers(len(found), of_module)


def freeze_layers(encoder: CLIPEncoder, number: int) -> None:
    """Freezes the first layers, and what comes before them: they get no gradient, nothing goes
    backward through them, and in training they stay in evaluation mode.

    Raises:
        LookalikeError: there are not so many layers, or they cannot be found.
    """
    layers = find_layers(encoder, "frozen_layers")
    if number > layers.count:
        raise ConfigError(
            f"frozen_layers is {number}, but {encoder.model_name} has {layers.count} layers; set "
            f"it to {layers.count} or less"
        )
    for name, parameter in encoder.vision_parameters():
        if layers.of(name) <= number:
            parameter.requires_grad_(False)
    trained = [name for name, _ in encoder.trainable_parameters()]
    if not trained:
        raise ConfigError(
            f"frozen_layers is {number}, which leaves nothing of {encoder.model_name} to "
            f"train; set it to {number - 1} or less"
        )
    for name, module in encoder.named_modules():
        holds_trained = any(one.startswith(f"{name}.") or not name for one in trained)
        if layers.of_module[name] <= number and not holds_trained:
            encoder.frozen_parts.append(module)


def has_batch_norm(encoder: CLIPEncoder) -> bool:
    """Returns true for an encoder that normalises over batches, and has running statistics."""
    return any(isinstance(part, _BatchNorm) for part in encoder.modules())


def drop_patches(encoder: CLIPEncoder, share: float) -> None:
    """Makes training leave out patches (Liu et al., PatchDropout, WACV 2023).

    A `share` (from 0 to below 1) of the patches of each image, drawn anew each time it is embedded
    in training mode (see `patches_drawn_by`), stops before the first layer, where positions have
    been added; one patch at least goes on, and so do class token and registers. Evaluation has all
    patches.

    Raises:
        ModelError: the layers cannot be found, or need all patches.
    """
    first = blocks(encoder, "patch_dropout")[0]
    black = encoder.preprocessing.black(1).to(encoder.device)
    num_others = _tokens_beside_patches(encoder, first, black)
    # A few that are missing can be taken for what they are not, or be none at all; half cannot.
    half, hook = (_PatchDropout(encoder, num_others, one) for one in (0.5, share))
    try:
        with first.register_forward_pre_hook(half, with_kwargs=True):
            encoder.train()(black)
    except (RuntimeError, ValueError, TypeError) as error:
        raise _needs_all_patches(encoder) from error
    finally:
        encoder.eval()
    first.register_forward_pre_hook(hook, with_kwargs=True)


@contextmanager
def patches_drawn_by(
    encoder: CLIPEncoder, seed: tuple[int, ...] | None, first: int
) -> Iterator[None]:
    """Inside the block patch dropout draws for image i by `seed` and the place `first + i` alone,
    whichever process embeds it and with which others. Without a seed torch's generator draws.
    """
    encoder.patch_seed = None if seed is None else (seed, first)
    try:
        yield
    finally:
        encoder.patch_seed = None


@dataclass(frozen=True, eq=False)
class _PatchDropout:
    """Leaves out patches before the first layer while the encoder is trained."""

    # An object, so that a copy of the encoder has one that looks at the copy.
    encoder: CLIPEncoder  # the layer itself may be frozen, and in evaluation mode always
    num_others: int
    share: float

    def __call__(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if not self.encoder.training:
            return None
        if given:
            return (self._some(given[0]), *given[1:]), named
        return given, named | {"hidden_states": self._some(named["hidden_states"])}

    def _some(self, tokens: Tensor) -> Tensor:
        """Returns the tokens (batch, tokens, dim) that are no patch, and some patches, in order."""
        others, patches = tokens[:, : self.num_others], tokens[:, self.num_others :]
        batch, count, dim = patches.shape
        order = self._draws(batch, count, tokens.device).argsort(dim=1)
        kept = order[:, : max(1, round(count * (1 - self.share)))].sort(dim=1).values
        return torch.cat([others, patches.gather(1, kept[:, :, None].expand(-1, -1, dim))], dim=1)

    def _draws(self, batch: int, count: int, device: torch.device) -> Tensor:
        """Returns a random number for each patch of each image."""
        if self.encoder.patch_seed is None:
            return torch.rand(batch, count, device=device)
        seed, first = self.encoder.patch_seed
        rows = [
            # Augmentation draws by the same numbers, without the last one.
            np.random.default_rng((*seed, first + i, _OF_PATCHES)).random(count, np.float32)
            for i in range(batch)
        ]
        return torch.from_numpy(np.stack(rows)).to(device)


def on_device(
    encoder: CLIPEncoder, runtime: Runtime, *, side: int | None = None, patch_dropout: float = 0.0
) -> CLIPEncoder:
    """Moves an encoder to the runtime's device, with the attention that is fastest there.

    On a CPU torch's fused attention goes backward slowly over short sequences: plain products take
    a step in 0.77 to 0.89 of the time up to 257 tokens, and in 1.45 at 577 (docs/experiments.md).

    Images are of `side` px (None: the encoder's own), without a share of `patch_dropout` patches.
    It raises ModelError where the encoder does not fit.
    """
    how = encoder.preprocessing
    patches = num_patches(encoder.backbone.config, side or how.height, side or how.width)
    is_short = patches is not None and patches * (1 - patch_dropout) <= _SHORT_SEQUENCE
    if is_short and runtime.device.type == "cpu":
        encoder.backbone.set_attn_implementation("eager")
    return runtime.place(encoder)


@torch.no_grad()
def _tokens_beside_patches(encoder: CLIPEncoder, first: nn.Module, pixels: Tensor) -> int:
    """Counts the tokens before the patches where they enter the first layer."""
    patches = num_patches(encoder.backbone.config, *pixels.shape[2:])
    entered: list[Any] = []

    def note(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        entered.append(given[0] if given else named.get("hidden_states"))

    with first.register_forward_pre_hook(note, with_kwargs=True):
        encoder(pixels)
    is_sequence = isinstance(entered[0], Tensor) and entered[0].ndim == 3
    if patches is None or not is_sequence or entered[0].shape[1] < patches:
        raise _needs_all_patches(encoder)
    return int(entered[0].shape[1]) - patches


def _needs_all_patches(encoder: CLIPEncoder) -> ModelError:
    return ModelError(
        f"{encoder.model_name} needs all patches of an image in its layers; "
        f"{_how_to_do_without('patch_dropout')}, or take a plain vision transformer such as CLIP's "
        "or DINOv2"
    )


def blocks(encoder: CLIPEncoder, option: str) -> nn.ModuleList:
    """Returns the blocks of an encoder that images pass through, in their order.

    Raises:
        ModelError: they cannot be found; `option`, which needs them, stands in it.
    """
    parameters, outer = [name for name, _ in encoder.vision_parameters()], list[str]()
    lists: list[tuple[str, nn.ModuleList]] = []
    for name, module in encoder.named_modules():
        if isinstance(module, nn.ModuleList) and not name.startswith(tuple(outer)):
            outer.append(f"{name}.")
            if any(parameter.startswith(f"{name}.") for parameter in parameters):
                lists.append((name, module))
    lists.sort(key=lambda found: len(found[1]), reverse=True)
    if not lists or (len(lists) > 1 and len(lists[0][1]) == len(lists[1][1])):
        among = ", ".join(name for name, _ in lists) or "no list of blocks"
        raise ModelError(
            f"{option} needs to know the layers of {encoder.model_name}, but its structure does "
            f"not reveal them ({among}); {_how_to_do_without(option)}, or use another model"
        )
    return lists[0][1]


def _how_to_do_without(option: str) -> str:
    """Returns the setting that switches an option off, a recipe's included."""
    off = {"layer_decay": 1, "compile": "off"}.get(option, 0)
    return f"set {option} to {off} (--{option.replace('_', '-')} {off})"
