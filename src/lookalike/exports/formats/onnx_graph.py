"""An ONNX graph from pixels to embeddings, for servers that have no PyTorch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor, nn

from lookalike.data.transforms import preprocess
from lookalike.errors import ModelError, first_line
from lookalike.exports.agreement import Embeddings, Form
from lookalike.model.encoder import CLIPEncoder
from lookalike.progress import others_hushed

GRAPH = "model.onnx"
PIXELS, EMBEDDINGS = "pixels", "embeddings"


class _Graph(nn.Module):
    """Embeds pixels as images are decoded, channels last."""

    def __init__(self, encoder: CLIPEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, pixels: UInt8[Tensor, "batch height width 3"]
    ) -> Float32[Tensor, "batch dim"]:
        embeddings: Tensor = self.encoder(pixels.permute(0, 3, 1, 2))
        return embeddings


def save_onnx(encoder: CLIPEncoder, folder: Path) -> None:
    """Writes `model.onnx`: uint8 pixels in, L2-normalised float32 embeddings out, any batch.

    Scaling and normalisation are in the graph; cutting images to size is not. What that takes
    stands in the graph's metadata (`lookalike.preparation`), as JSON. Weights beyond 2 GB go to
    a file beside it, since one ONNX file cannot hold more.

    Raises:
        ModelError: PyTorch cannot turn the model into a graph.
    """
    how = encoder.preprocessing
    example = torch.zeros(2, how.height, how.width, 3, dtype=torch.uint8)
    with others_hushed():
        try:
            program = torch.onnx.export(
                _Graph(encoder).eval(), (example,), dynamo=True, verbose=False,
                input_names=[PIXELS], output_names=[EMBEDDINGS],
                dynamic_shapes={PIXELS: {0: torch.export.Dim("batch")}},
            )  # fmt: skip
        except torch.onnx.errors.OnnxExporterError as error:
            raise ModelError(
                f"PyTorch cannot turn {encoder.model_name} into an ONNX graph: {first_line(error)}"
            ) from error
        if program is None:  # only the older exporter returns nothing
            raise ModelError(f"this PyTorch ({torch.__version__}) has no ONNX exporter of its own")
        program.model.metadata_props["lookalike.preparation"] = json.dumps(how.facts())
        program.save(folder / GRAPH)


def _embed(folder: Path, encoder: CLIPEncoder, images: Sequence[Image.Image]) -> Embeddings:
    """Embeds in batches of one and of the others: the graph must take any."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / GRAPH, providers=["CPUExecutionProvider"])
    cut = [preprocess(image, encoder.preprocessing) for image in images]
    pixels = torch.stack(cut).permute(0, 2, 3, 1).numpy()
    batches = (pixels[:1], pixels[1:])
    return np.concatenate([session.run([EMBEDDINGS], {PIXELS: batch})[0] for batch in batches])


ONNX = Form(
    save_onnx,
    _embed,
    tolerance=1e-4,
    extra="onnx",
    modules=("onnx", "onnxruntime", "onnxscript"),
    needs="ONNX needs onnx, onnxscript and onnxruntime",
)
