"""What is added to the objective, to hold an encoder near its baseline: captions, distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from lookalike.config import TrainConfig
from lookalike.errors import ConfigError
from lookalike.model.encoder import CLIPEncoder, evaluation_mode
from lookalike.model.layers import has_batch_norm
from lookalike.model.text import caption_of, embed_texts
from lookalike.progress import Progress
from lookalike.runtime.device import Runtime
from lookalike.training.sharding import part_of


class BaselineWeights:
    """A copy of an encoder's trainable weights, from before the first step.

    `values` has them by the names of the encoder's parameters.

    Args:
        encoder: not yet trained; or, of a resumed run, trained already.
        saved: what a resumed run had; None: what the encoder has now.
    """

    def __init__(self, encoder: CLIPEncoder, saved: Mapping[str, Tensor] | None = None) -> None:
        self._encoder = encoder
        self.values = {
            name: p.detach().clone() if saved is None else part_of(saved[name], p).to(p.device)
            for name, p in encoder.trainable_parameters()
        }

    @torch.no_grad()
    def embed(self, pixels: UInt8[Tensor, "batch 3 height width"]) -> Float32[Tensor, "batch dim"]:
        """Returns what the encoder gave before the first step, in evaluation mode."""
        with evaluation_mode(self._encoder):
            embeddings: Tensor = functional_call(self._encoder, self.values, (pixels,))
        return embeddings


class CaptionLoss(nn.Module):
    """Cross-entropy of each image's own caption among the captions of all classes.

    `-log softmax(scale * images @ texts.T)[own caption]`, averaged over the images: a
    classifier whose weights are embedded texts that stay as they are (the zero-shot head of CLIP,
    Radford et al., ICML 2021, section 3.1; trained beneath it: Wortsman et al., CVPR 2022).

    Args:
        texts: L2-normalised embeddings of the captions, each caption once.
        caption_of_class: which of them stands for class i; two classes may share one.
        scale: the inverse of the temperature that the model's own two towers were trained with.
    """

    def __init__(
        self, texts: Float32[Tensor, "captions dim"], caption_of_class: Sequence[int], scale: float
    ) -> None:
        super().__init__()
        self.scale = scale
        # Made anew from the text tower, so not part of a checkpoint.
        self._texts = nn.Buffer(texts, persistent=False)
        self._caption_of_class = nn.Buffer(torch.tensor(caption_of_class), persistent=False)

    def forward(
        self, embeddings: Float[Tensor, "batch dim"], labels: Int64[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Returns the loss of L2-normalised embeddings and their classes' numbers, in float32."""
        logits = self.scale * embeddings.float() @ self._texts.T
        return functional.cross_entropy(logits, self._caption_of_class[labels])


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
        """Returns the baseline's embeddings of the whole batch; None without distillation.

        Of several processes each embeds its part, and all get all.
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

        Distillation is 1 - cos of `baseline`, which `embed_baseline` gave for the same images:
        half the squared distance of unit vectors, averaged over images (squared distances to a
        teacher's features: Romero et al., ICLR 2015).
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
    """Returns the regularizers that a configuration asks for.

    Args:
        encoder: on its device, with what is trained chosen already.
        classes: class i is called `classes[i]`.
        saved: the checkpoint of a resumed run.

    Raises:
        ConfigError: captions are asked for, and there are no texts; or distillation is, of an
            encoder that is not its weights alone.
    """
    baseline, captions = None, None
    if config.distillation_weight:
        # Statistics of batches (BatchNorm) are a part of the model that is no weight.
        if has_batch_norm(encoder):
            raise ConfigError(
                f"distillation_weight needs the baseline, of which only weights are kept, but "
                f"{encoder.model_name} also has running statistics (BatchNorm); set "
                "distillation_weight to 0"
            )
        baseline = BaselineWeights(encoder, saved["baseline_state_dict"] if saved else None)
    if config.caption_weight:
        captions = make_caption_loss(encoder, classes, config.caption_template, progress)
    return Regularizers(captions, config.caption_weight, baseline, config.distillation_weight)


def make_caption_loss(
    encoder: CLIPEncoder, classes: Sequence[str], template: str, progress: Progress
) -> CaptionLoss:
    """Returns the loss with a caption for each class, embedded by the encoder's text tower: that of
    class i is the `template`, with `classes[i]` in the place of its `{}`.

    Raises:
        ConfigError: the encoder embeds no texts, or all classes have one caption.
    """
    reason = encoder.why_no_text
    if reason is None and not hasattr(encoder.backbone, "logit_scale"):
        reason = f"{encoder.model_name} does not state the scale that its towers were trained with"
    if reason is not None:
        raise ConfigError(
            f"caption_weight needs texts, and {reason}; set caption_weight to 0, or use a model "
            "with a text tower (CLIP, SigLIP)"
        )
    captions = [caption_of(name, template) for name in classes]
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    if len(number) < 2:
        raise ConfigError(
            f"all classes have the caption {captions[0]!r}, so captions cannot tell classes apart; "
            "set caption_weight to 0"
        )
    without_words = [name for name in classes if not any(letter.isalpha() for letter in name)]
    if len(without_words) > len(classes) / 2:
        progress.warn(
            f"{len(without_words):,} of {len(classes):,} classes have names without words "
            f"({without_words[0]!r}), whose captions teach nothing; set caption_weight to 0"
        )
    texts = embed_texts(encoder, list(number), progress=progress)
    scale = float(encoder.backbone.logit_scale.detach().exp())
    loss = CaptionLoss(texts, [number[caption] for caption in captions], scale)
    return loss.to(encoder.device)
