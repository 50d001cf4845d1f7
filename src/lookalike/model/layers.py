"""Which layer of an encoder each parameter is of, found from the module tree; freezing layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from lookalike.errors import ConfigError, ModelError
from lookalike.model.encoder import CLIPEncoder


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
        """The number of the layer after the last block."""
        return self.count + 1

    def of(self, parameter_name: str) -> int:
        """The layer of a parameter, by its name in `named_parameters()`."""
        return self.of_module[parameter_name.rpartition(".")[0]]


def find_layers(encoder: CLIPEncoder, knob: str) -> Layers:
    """Finds the layers of an encoder, whether or not they are trained.

    The blocks are the longest `ModuleList` that lies in no other one and that pictures pass
    through; modules are registered in the order in which they are used. For a backbone that
    shrinks its picture in stages (ConvNeXt, Swin), a stage is a layer.

    Args:
        encoder: the encoder.
        knob: what needs to know; it stands in the error.

    Raises:
        ModelError: no one list is the longest.
    """
    lists = sorted(_outermost_lists(encoder), key=lambda found: len(found[1]), reverse=True)
    if not lists or (len(lists) > 1 and len(lists[0][1]) == len(lists[1][1])):
        among = ", ".join(name for name, _ in lists) or "no list of blocks"
        raise ModelError(
            f"{knob} needs to know the layers of {encoder.model_name}, and its structure does not "
            f"tell them ({among}); leave {knob} out, or take another model"
        )
    prefix, count = f"{lists[0][0]}.", len(lists[0][1])
    of_module, number = {}, 0
    for name, _ in encoder.named_modules():
        if name.startswith(prefix):
            number = 1 + int(name.removeprefix(prefix).partition(".")[0])
        elif number > 0:
            number = count + 1
        of_module[name] = number
    return Layers(count, of_module)


def freeze_layers(encoder: CLIPEncoder, number: int) -> None:
    """Freezes the first layers, and what comes before them: they get no gradient, nothing goes
    backward through them, and in training they stay in evaluation mode (no dropout; running
    statistics stay as they are).

    Raises:
        ConfigError: there are not so many layers.
        ModelError: the layers cannot be found.
    """
    layers = find_layers(encoder, "frozen_layers")
    if number > layers.count:
        raise ConfigError(
            f"frozen_layers is {number}, and {encoder.model_name} has {layers.count} layers; set "
            f"it to {layers.count} or less"
        )
    for name, parameter in encoder.vision_parameters():
        if layers.of(name) <= number:
            parameter.requires_grad_(False)
    if not any(encoder.trainable_parameters()):
        raise ConfigError(
            f"frozen_layers is {number}, and nothing of {encoder.model_name} that could be trained "
            f"comes after; set it to {number - 1} or less"
        )
    trained = [name for name, _ in encoder.trainable_parameters()]
    for name, module in encoder.named_modules():
        holds_trained = any(one.startswith(f"{name}.") or not name for one in trained)
        if layers.of_module[name] <= number and not holds_trained:
            encoder.frozen_parts.append(module)


def _outermost_lists(encoder: CLIPEncoder) -> Iterator[tuple[str, nn.ModuleList]]:
    """Lists of modules that pictures pass through and that lie in no other list."""
    parameters = [name for name, _ in encoder.vision_parameters()]
    outer: list[str] = []
    for name, module in encoder.named_modules():
        if not isinstance(module, nn.ModuleList) or name.startswith(tuple(outer)):
            continue
        outer.append(f"{name}.")
        if any(parameter.startswith(f"{name}.") for parameter in parameters):
            yield name, module
