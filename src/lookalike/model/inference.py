"""An encoder in the form that embeds fastest: weights in bf16, or products of 8-bit integers."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lookalike.errors import ModelError, first_line
from lookalike.model.encoder import CLIPEncoder, evaluation_mode
from lookalike.model.layers import has_batch_norm
from lookalike.model.quick_gelu import put_silu, scales_for_silu
from lookalike.progress import others_hushed
from lookalike.runtime.device import Runtime, has_fast_bf16

EmbedBatch: TypeAlias = Callable[
    [UInt8[Tensor, "batch 3 height width"]], Float32[Tensor, "batch dim"]
]
_GROUP = 128  # numbers of a row of activations that share a scale; divides the usual widths


def inference_form(encoder: CLIPEncoder, runtime: Runtime) -> EmbedBatch:
    """Returns a function that embeds batches as `encoder(pixels)` does in evaluation mode and
    without gradients, in whichever mode the encoder is.

    In bf16 all weights are cast once, and what goes from layer to layer is bf16 as well, where
    autocast has most of it in float32 and casts again in each call. Embeddings have a cosine of
    about 0.9999 to those in float32 (docs/experiments.md). fp16, whose range is small, stays with
    autocast, and so do models with running statistics and those that are spread over processes.
    In int8, which training never has, each output of a linear layer has its weights on 127 steps
    either side of 0, and each row of activations is put on such steps as it comes, in groups of 128
    numbers with a scale of their own (Dettmers et al., LLM.int8(), NeurIPS 2022, without its
    outliers in fp16). Nothing is calibrated: embeddings do not depend on other images. Layers with
    less than 128 inputs, and all else, are computed in bf16 where the processor has units for it,
    or in float32.

    Args:
        encoder: on the runtime's device. Changes of its weights after this need another form.

    Raises:
        ModelError: int8 is wanted, and OpenVINO cannot compute the model.
    """
    with evaluation_mode(encoder):  # a copy stays in the mode that it is made in
        if runtime.precision == "int8":
            return _in_int8(encoder, runtime)
        fast = _in_bf16(encoder) if runtime.precision == "bf16" else None

    @torch.no_grad()  # inference_mode would spoil sharded weights for training
    def embed_batch(pixels: Tensor) -> Any:
        if fast is not None:
            return fast(fast.normalised(pixels).to(torch.bfloat16))
        with evaluation_mode(encoder), runtime.autocast():
            return encoder(pixels)

    return embed_batch


def _in_bf16(encoder: CLIPEncoder) -> CLIPEncoder | None:
    """Returns a copy with weights in bf16; None where statistics run, or it is spread."""
    is_spread = any(isinstance(p, DTensor) for p in encoder.parameters())
    if is_spread or has_batch_norm(encoder):
        return None
    scales = scales_for_silu(encoder)
    # What a copy is to have in the place of each parameter; of the text tower, the same one.
    instead: dict[int, Any] = {id(p): p for p in encoder.parameters()}
    for name, p in encoder.vision_parameters():
        low = (p.detach() * scales.get(name, 1)).to(torch.bfloat16)
        instead[id(p)] = nn.Parameter(low, requires_grad=False)
    fast = copy.deepcopy(encoder, instead)
    put_silu(fast, scales)
    return fast


def _in_int8(encoder: CLIPEncoder, runtime: Runtime) -> EmbedBatch:
    """Returns the encoder with products of 8-bit integers, by OpenVINO on a CPU."""
    try:
        openvino = _openvino()
        with torch.no_grad(), others_hushed():
            model = _graph(encoder)
            _put_weights_on_steps(model)
            compiled = openvino.Core().compile_model(
                model,
                "CPU",
                {
                    "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(_GROUP),
                    "INFERENCE_PRECISION_HINT": "bf16" if has_fast_bf16(runtime.device) else "f32",
                    "ENABLE_CPU_PINNING": "NO",  # it would pin every process to the same cores
                    "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
                    "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, with all threads
                },
            )
    # Exporter and converter raise nearly everything for what they do not know.
    except Exception as error:
        raise ModelError(
            f"OpenVINO cannot compute {encoder.model_name} in int8 ({first_line(error)}); set "
            "--precision auto"
        ) from error

    def embed_batch(pixels: Tensor) -> Tensor:
        return torch.from_numpy(compiled(pixels.numpy())[0])

    return embed_batch


def _openvino() -> Any:
    """Imports OpenVINO without the package by which it reports to its makers that it was."""
    # It does without where there is none; unless the process has imported either already.
    reports = "openvino_telemetry"
    hidden = reports not in sys.modules
    if hidden:
        sys.modules[reports] = None  # type: ignore[assignment] # Python's own way to say: not here
    try:
        import openvino
    finally:
        if hidden:
            del sys.modules[reports]
    return openvino


def _graph(encoder: CLIPEncoder) -> Any:
    """Returns the encoder as OpenVINO's model: any number of uint8 images in, embeddings out."""
    # By the front end alone: `openvino.convert_model`, which calls it, reports each use as well.
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    given, shapes = (encoder.preprocessing.black(2),), ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(encoder, given, strict=False, dynamic_shapes=shapes)
    decoder = TorchFXPythonDecoder.from_exported_program(program)  # has to outlive what is loaded
    front_end = FrontEndManager().load_by_framework("pytorch")
    return front_end.convert(front_end.load(decoder))


def _put_weights_on_steps(model: Any) -> None:
    """Makes the weights of linear layers integers times a scale for each output."""
    from openvino import opset13 as operations

    for operation in model.get_ordered_ops():
        if operation.get_type_name() != "MatMul":
            continue
        source = operation.input_value(1).get_node()
        is_matrix = source.get_type_name() == "Constant" and len(source.get_output_shape(0)) == 2
        if not is_matrix or not operation.get_attributes()["transpose_b"]:
            continue
        weights = source.data.astype(np.float32)
        scale = np.maximum(np.abs(weights).max(axis=1, keepdims=True) / 127, np.float32(1e-12))
        # A conversion and a product, which OpenVINO takes for what they are.
        steps = operations.convert(np.rint(weights / scale).astype(np.int8), np.float32)
        product = operations.multiply(steps, operations.constant(scale))
        operation.input(1).replace_source_output(product.output(0))
