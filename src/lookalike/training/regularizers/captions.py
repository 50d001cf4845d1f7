"""Class names as captions: what an image shows, in words that the text tower embeds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from lookalike.errors import ConfigError
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.text import caption_of, embed_texts
from lookalike.progress import Progress


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
        self,
        texts: Float32[Tensor, "captions dim"],
        caption_of_class: Sequence[int],
        scale: float,
    ) -> None:
        super().__init__()
        self.scale = scale
        # Made anew from the text tower, so not part of a checkpoint.
        self._texts: Tensor
        self._caption_of_class: Tensor
        self.register_buffer("_texts", texts, persistent=False)
        self.register_buffer("_caption_of_class", torch.tensor(caption_of_class), persistent=False)

    def forward(
        self, embeddings: Float[Tensor, "batch dim"], labels: Int64[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Returns the loss of a batch, in float32.

        Args:
            embeddings: L2-normalised, of images.
            labels: numbers of their classes.
        """
        logits = self.scale * embeddings.float() @ self._texts.T
        return functional.cross_entropy(logits, self._caption_of_class[labels])


def make_caption_loss(
    encoder: CLIPEncoder, classes: Sequence[str], template: str, progress: Progress
) -> CaptionLoss:
    """Returns the loss with a caption for each class, embedded by the encoder's text tower.

    Args:
        encoder: with a text tower.
        classes: class i is called `classes[i]`.
        template: the caption, with `{}` where the name goes.

    Raises:
        ConfigError: the encoder embeds no texts, or all classes have one caption.
    """
    reason = encoder.why_no_text
    if reason is None and not hasattr(encoder.backbone, "logit_scale"):
        reason = f"{encoder.model_name} does not tell the scale that its towers were trained with"
    if reason is not None:
        raise ConfigError(
            f"caption_weight needs texts, and {reason}; set caption_weight to 0, or take a model "
            "with a text tower (CLIP, SigLIP)"
        )
    captions = [caption_of(name, template) for name in classes]
    different = list(dict.fromkeys(captions))
    if len(different) < 2:
        raise ConfigError(
            f"all classes have the caption {different[0]!r}, which tells nothing apart; set "
            "caption_weight to 0"
        )
    without_words = [name for name in classes if not any(letter.isalpha() for letter in name)]
    if len(without_words) > len(classes) / 2:
        progress.warn(
            f"{len(without_words):,} of {len(classes):,} classes have no words for a name "
            f"({without_words[0]!r}), and captions of them teach nothing; set caption_weight to 0"
        )
    texts = embed_texts(encoder, different, progress=progress)
    number = {caption: i for i, caption in enumerate(different)}
    scale = float(encoder.backbone.logit_scale.detach().exp())
    loss = CaptionLoss(texts, [number[caption] for caption in captions], scale)
    return loss.to(encoder.device)
