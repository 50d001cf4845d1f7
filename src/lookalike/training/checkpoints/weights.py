"""The weights in a checkpoint: those that were measured, and what else it takes to train on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lookalike.errors import CheckpointError
from lookalike.model.lora import layers_under_lora, lora_matrices, plain_state_dict
from lookalike.training.step.learner import Learner
from lookalike.training.step.parallel import part_of


@contextmanager
def saved_weights(learner: Learner) -> Iterator[dict[str, Any]]:
    """A checkpoint's entries for the weights, which are theirs only inside the block.

    `model_state_dict` is what was measured, under the backbone's plain names: it loads wherever
    a model does. Where averaging or LoRA make training go on with other weights than these,
    they are `training_state_dict`; `average_state_dict` has the means of what is not in
    `model_state_dict`. Only the layers that LoRA changes are copied: there may be no room for
    more.
    """
    unchanged = {
        name: weight.clone() for name, weight in layers_under_lora(learner.encoder).items()
    }
    average = learner.average
    with learner.measured() as encoder:
        matrices = lora_matrices(encoder)
        # Inside the block the encoder has the means, and the average keeps the weights.
        training = matrices if average is None else average.means
        yield {
            "model_state_dict": plain_state_dict(encoder),
            "training_state_dict": unchanged | training,
            "average_state_dict": None
            if average is None
            else {"num_updates": average.num_updates, "means": matrices},
        }


def restore_weights(learner: Learner, checkpoint: dict[str, Any]) -> None:
    """Puts back what `saved_weights` saved, into a learner made of `model_state_dict`.

    Raises:
        CheckpointError: the weights are those of other layers.
        RuntimeError: they are of another shape.
    """
    # The average was made of the measured weights, which are its means; now come the others.
    here = dict(learner.encoder.named_parameters())
    training = {
        name: part_of(weight, here.get(name, weight))
        for name, weight in checkpoint["training_state_dict"].items()
    }
    loaded = learner.encoder.load_state_dict(training, strict=False)
    if loaded.unexpected_keys:
        raise CheckpointError(
            f"the checkpoint has weights that the model has not ({loaded.unexpected_keys[0]}); it "
            "was saved with another release of peft or Transformers, go on with that"
        )
    if learner.average is not None:
        learner.average.take_up(**checkpoint["average_state_dict"])
