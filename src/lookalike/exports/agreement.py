"""A check that what was exported gives the embeddings of the model it was made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image

from lookalike.data.transforms import preprocess
from lookalike.errors import MissingExtraError, ModelError
from lookalike.model.encoder import CLIPEncoder, evaluation_mode

Embeddings = Float32[np.ndarray, "images dim"]


@dataclass(frozen=True)
class Form:
    """One form to export to.

    `write` puts the model into an empty folder. `embed` embeds images as whoever loads the folder
    will; the encoder only tells it how images are cut and which embedding is meant. No number of
    an embedding may differ by more than `tolerance`. It needs `modules`, which `extra` installs.
    """

    write: Callable[[CLIPEncoder, Path], None]
    embed: Callable[[Path, CLIPEncoder, Sequence[Image.Image]], Embeddings]
    tolerance: float
    extra: str = ""
    modules: tuple[str, ...] = ()
    needs: str = ""

    def require(self) -> None:
        """Raises MissingExtraError where a package that it needs is not installed, or too old."""
        try:
            for module in self.modules:
                import_module(module)
        except ImportError as error:
            raise MissingExtraError(
                f"exporting to {self.needs} ({error}): pip install 'lookalike[{self.extra}]'"
            ) from error


@dataclass(frozen=True)
class Agreement:
    """The largest distance of the exported model's embeddings from the original's."""

    num_images: int
    largest_difference: float
    smallest_cosine: float
    tolerance: float

    def in_words(self) -> str:
        """Returns it in one line."""
        if self.largest_difference == 0:
            return f"{self.num_images} images get the same embeddings, to the last bit"
        return (
            f"embeddings of {self.num_images} images differ by {self.largest_difference:.1e} "
            f"at most ({self.tolerance:.0e} allowed)"
        )


def check_agreement(folder: Path, form: Form, encoder: CLIPEncoder) -> Agreement:
    """Compares the original's embeddings with the export's; raises ModelError if they differ."""
    images = _made_up_images()
    ours, theirs = embed_images(encoder, images), form.embed(folder, encoder, images)
    if theirs.shape != ours.shape:
        raise ModelError(
            f"the exported model gives embeddings of shape {theirs.shape}, and the original gives "
            f"{ours.shape}; this format cannot hold this model, choose another with --to"
        )
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    found = Agreement(len(images), float(np.abs(a - b).max()), float(cosines.min()), form.tolerance)
    if not found.largest_difference <= form.tolerance:  # so that NaN fails as well
        raise ModelError(
            f"the exported model's embeddings differ from the original's by up to "
            f"{found.largest_difference:.1e}, but {form.tolerance:.0e} is allowed; nothing was "
            "written"
        )
    return found


def embed_images(encoder: CLIPEncoder, images: Sequence[Image.Image]) -> Embeddings:
    """Embeds images cut as the model wants them, on the CPU, in float32."""
    pixels = torch.stack([preprocess(image, encoder.preprocessing) for image in images])
    with evaluation_mode(encoder), torch.inference_mode():
        embeddings: Embeddings = encoder(pixels).numpy()
    return embeddings


def _made_up_images() -> list[Image.Image]:
    """Returns three images of different shapes, always the same: waves of colour, and noise."""
    rng = np.random.default_rng(0)
    images = []
    for width, height in ((400, 300), (240, 420), (64, 64)):
        x, y = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
        waves = [np.sin(2 * np.pi * (a * x + b * y)) for a, b in rng.uniform(-6, 6, (3, 2))]
        noisy = 128 + 90 * np.stack(waves, axis=2) + rng.normal(0, 20, (height, width, 3))
        images.append(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    return images
