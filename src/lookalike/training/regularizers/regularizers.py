"""All that holds an encoder near its baseline, as a step uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lookalike.config import TrainConfig
from lookalike.errors import ConfigError
from lookalike.model.encoder import CLIPEncoder
from lookalike.progress import Progress
from lookalike.runtime.device import Runtime
from lookalike.training.regularizers.baseline import BaselineWeights
from lookalike.training.regularizers.captions import CaptionLoss, make_caption_loss


@dataclass(frozen=True)
class Regularizers:
    """What is added to the objective; nothing by default."""

    captions: CaptionLoss | None = None
    caption_weight: float = 0.0
    baseline: BaselineWeights | None = None
    distillation_weight: float = 0.0

    def embed_baseline(
        self, pixels: UInt8[Tensor, "part 3 height width"], runtime: Runtime, *, chunk_size: int
    ) -> Float32[Tensor, "batch dim"] | None:
        """Returns what distillation holds to: the baseline's embeddings of the whole batch.

        Of several processes each embeds its part, and all get all. None without distillation.
        """
        if self.baseline is None:
            return None
        # Where a process has read nothing, any image tells the shape of a row.
        shown = pixels if len(pixels) else pixels.new_zeros(1, *pixels.shape[1:])
        with runtime.autocast():
            parts = [self.baseline.embed(chunk) for chunk in shown.split(chunk_size)]
        rows, _ = runtime.world.all_gather_rows(torch.cat(parts)[: len(pixels)])
        return rows

    def loss(
        self,
        embeddings: Float[Tensor, "batch dim"],
        labels: Int64[Tensor, " batch"],
        baseline: Float32[Tensor, "batch dim"] | None,
    ) -> Float[Tensor, ""] | float:
        """Returns what is added to the objective: captions and distillation, each by its weight.

        Distillation is 1 - cos, half the squared distance of unit vectors, averaged over images
        (squared distances to a teacher's features: Romero et al., ICLR 2015).

        Args:
            embeddings: of all images of a step.
            labels: their classes' numbers.
            baseline: what `embed_baseline` gave for the same images.
        """
        total: Tensor | float = 0.0
        if self.captions is not None:
            total = total + self.caption_weight * self.captions(embeddings, labels)
        if baseline is not None:
            cosines = (embeddings.float() * baseline).sum(dim=1)
            total = total + self.distillation_weight * (1 - cosines).mean()
        return total


NO_REGULARIZERS = Regularizers()


def make_regularizers(
    config: TrainConfig,
    encoder: CLIPEncoder,
    classes: Sequence[str],
    progress: Progress,
    *,
    saved: Mapping[str, Any] | None,
) -> Regularizers:
    """Makes what a configuration asks for.

    Args:
        config: the weights of captions and distillation.
        encoder: on its device, with what is trained chosen already.
        classes: class i is called `classes[i]`.
        progress: is shown how captions are embedded.
        saved: the checkpoint of a resumed run.

    Raises:
        ConfigError: captions are asked for, and there are no texts; or distillation is, of an
            encoder that is not its weights alone.
    """
    baseline, captions = None, None
    if config.distillation_weight:
        # Statistics of batches (BatchNorm) are a part of the model that is no weight.
        if any(isinstance(part, _BatchNorm) for part in encoder.modules()):
            raise ConfigError(
                f"distillation_weight needs the baseline, of which weights are kept, and "
                f"{encoder.model_name} has running statistics as well (BatchNorm); set "
                "distillation_weight to 0"
            )
        baseline = BaselineWeights(encoder, saved["baseline_state_dict"] if saved else None)
    if config.caption_weight:
        captions = make_caption_loss(encoder, classes, config.caption_template, progress)
    return Regularizers(captions, config.caption_weight, baseline, config.distillation_weight)
