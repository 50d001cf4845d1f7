"""The weights in a checkpoint: those that were measured, and what else it takes to train on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from lookalike.errors import CheckpointError
from lookalike.model.adapters import lora_state_dict, plain_state_dict
from lookalike.training.step import Learner


@contextmanager
def saved_weights(learner: Learner) -> Iterator[dict[str, Any]]:
    """A checkpoint's entries for the weights, which are theirs only inside the block.

    `model_state_dict` is what was measured, under the backbone's plain names: it loads wherever
    a model does. Where averaging or LoRA make training go on with other weights than these,
    they are `training_state_dict`; `average_state_dict` has the means of what is not in
    `model_state_dict`.
    """
    training = {name: tensor.clone() for name, tensor in _only_in_training(learner).items()}
    average = learner.average.state_dict() if learner.average else None
    with learner.measured() as encoder:
        model = plain_state_dict(encoder)
        if average:
            average["means"] = {n: mean for n, mean in average["means"].items() if n not in model}
        yield {
            "model_state_dict": model,
            "training_state_dict": training,
            "average_state_dict": average,
        }


def restore_weights(learner: Learner, checkpoint: dict[str, Any]) -> None:
    """Puts back what `saved_weights` saved, into a learner made of `model_state_dict`.

    Raises:
        CheckpointError: the weights are those of other layers.
        RuntimeError: they are of another shape.
    """
    # The average was made of the measured weights, which are its means; now come the others.
    loaded = learner.encoder.load_state_dict(checkpoint["training_state_dict"], strict=False)
    if loaded.unexpected_keys:
        raise CheckpointError(
            f"the checkpoint has weights that the model has not ({loaded.unexpected_keys[0]}); it "
            "was saved with another release of peft or Transformers, go on with that"
        )
    if learner.average is not None:
        learner.average.load_state_dict(checkpoint["average_state_dict"])


def _only_in_training(learner: Learner) -> dict[str, Tensor]:
    """The weights in training that `model_state_dict` does not tell."""
    state = lora_state_dict(learner.encoder)
    if learner.average is not None:
        state |= {name: p.detach() for name, p in learner.encoder.trainable_parameters()}
    return state
