"""All that holds an encoder to the model it came from, as a step uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lookalike.config import TrainConfig
from lookalike.errors import ConfigError
from lookalike.model.encoder import CLIPEncoder
from lookalike.progress import Progress
from lookalike.runtime.device import Runtime
from lookalike.training.regularizers.captions import CaptionLoss, make_caption_loss
from lookalike.training.regularizers.original import OriginalWeights

UNLABELLED = -1
"""The label of an image that is there for distillation alone."""


@dataclass(frozen=True)
class Anchors:
    """What is added to the objective, and what pulls the weights; nothing by default.

    Distillation looks at the images of the batch; or, `on_others`, at those alone that are
    `UNLABELLED`, which the objective never sees.
    """

    original: OriginalWeights | None = None
    captions: CaptionLoss | None = None
    caption_weight: float = 0.0
    distillation_weight: float = 0.0
    on_others: bool = False
    l2_sp: float = 0.0

    def labelled(self, labels: Int64[Tensor, " rows"]) -> Bool[Tensor, " rows"] | slice:
        """The rows that the objective sees."""
        return labels != UNLABELLED if self.on_others else slice(None)

    def embed_before(
        self,
        pixels: UInt8[Tensor, "part 3 height width"],
        labels: Int64[Tensor, " part"],
        runtime: Runtime,
        *,
        chunk_size: int,
    ) -> Float32[Tensor, "rows dim"] | None:
        """What distillation holds to: embeddings as they were before the first step.

        Of several processes each embeds its part, and all get all. None without distillation.
        """
        if not self.distillation_weight or self.original is None:
            return None
        held = pixels[self._held(labels)]
        # Where a process has read nothing to hold to, any image tells the shape of a row.
        shown = held if len(held) else torch.zeros_like(pixels[:1])
        with runtime.autocast():
            parts = [self.original.embed(chunk) for chunk in shown.split(chunk_size)]
        rows, _ = runtime.world.all_gather_rows(torch.cat(parts)[: len(held)])
        return rows

    def loss(
        self,
        embeddings: Float[Tensor, "rows dim"],
        labels: Int64[Tensor, " rows"],
        before: Float32[Tensor, "held dim"] | None,
    ) -> Float[Tensor, ""] | float:
        """What comes to the objective: captions and distillation, each by its weight.

        Distillation is 1 - cos, half the squared distance of unit vectors, averaged over images
        (squared distances to a teacher's features: Romero et al., ICLR 2015).

        Args:
            embeddings: of all images of a step.
            labels: their classes' numbers, or UNLABELLED.
            before: what `embed_before` gave for the same images.
        """
        total: Tensor | float = 0.0
        if self.captions is not None:
            rows = self.labelled(labels)
            total = total + self.caption_weight * self.captions(embeddings[rows], labels[rows])
        if before is not None and len(before):
            cosines = (embeddings[self._held(labels)].float() * before).sum(dim=1)
            total = total + self.distillation_weight * (1 - cosines).mean()
        return total

    def pull(self, optimizer: torch.optim.Optimizer) -> None:
        """Draws the weights back a little, where L2-SP is on; before each step of the optimiser."""
        if self.l2_sp and self.original is not None:
            self.original.pull(optimizer, self.l2_sp)

    def _held(self, labels: Int64[Tensor, " rows"]) -> Bool[Tensor, " rows"] | slice:
        return labels == UNLABELLED if self.on_others else slice(None)


NO_ANCHORS = Anchors()


def make_anchors(
    config: TrainConfig,
    encoder: CLIPEncoder,
    classes: Sequence[str],
    progress: Progress,
    *,
    saved: Mapping[str, Any] | None,
) -> Anchors:
    """What a configuration asks for.

    Args:
        config: weights and strengths.
        encoder: on its device, with what is trained chosen already.
        classes: class i is called `classes[i]`.
        saved: the checkpoint of a resumed run.

    Raises:
        ConfigError: captions are asked for, and there are no texts; or the original is, and it
            is not known any more, or not weights alone.
    """
    original, captions = None, None
    began = saved["original_state_dict"] if saved else None
    if _needs_original(config):
        _check_original(encoder, config)
        if saved is not None and began is None:
            raise ConfigError(
                "interpolation needs the weights that the run began with, which this one has not "
                "kept, for it began without; set interpolation to 0, or start a new run"
            )
    if _needs_original(config) or began is not None:  # it may be needed again later
        original = OriginalWeights(encoder, began)
    if config.caption_weight:
        captions = make_caption_loss(encoder, classes, config.caption_template, progress)
    return Anchors(
        original,
        captions,
        config.caption_weight,
        config.distillation_weight,
        config.distillation_images is not None,
        config.l2_sp,
    )


def _needs_original(config: TrainConfig) -> bool:
    """Whether a run has to remember the weights it began with."""
    return bool(config.distillation_weight or config.l2_sp or config.interpolation)


def _check_original(encoder: CLIPEncoder, config: TrainConfig) -> None:
    """Statistics of batches (BatchNorm) are a part of the model that is no weight."""
    option = "distillation_weight" if config.distillation_weight else "interpolation"
    if getattr(config, option) and any(isinstance(part, _BatchNorm) for part in encoder.modules()):
        raise ConfigError(
            f"{option} needs the model as it came, of which weights are kept, and "
            f"{encoder.model_name} has running statistics as well (BatchNorm); set {option} to 0, "
            "or hold it with l2_sp"
        )
