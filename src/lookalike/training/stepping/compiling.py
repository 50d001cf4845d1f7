"""Layers compiled by torch, which puts their small operations together."""

from __future__ import annotations

from lookalike.config import TrainConfig
from lookalike.errors import TrainingError
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.layers import blocks
from lookalike.progress import Progress
from lookalike.runtime import Runtime
from lookalike.training.stepping.batch_memory import black, forward_and_backward, only_tried

_STEPS_THAT_PAY = 1000  # for what compiling takes (benchmarks/results/gpu.md)


def compile_layers(
    config: TrainConfig,
    encoder: CLIPEncoder,
    runtime: Runtime,
    progress: Progress,
    *,
    chunk_size: int,
    total_steps: int,
    side: int | None,
) -> None:
    """Has torch compile the blocks of an encoder, if `config.compile` says so.

    All blocks are the same code, which is compiled once, for the training of pictures of one size.
    It is tried here, on black ones: what cannot be compiled fails before the first step.

    Args:
        config: "auto" means on a GPU, in runs that are long enough, for models that are whole.
        encoder: about to be trained, on its device.
        runtime: device and precision.
        progress: is told that it takes a while, or why it is left.
        chunk_size: pictures that go through at a time.
        total_steps: of the run.
        side: of these pictures, in px; None: the encoder's own.

    Raises:
        ModelError: it is on, and the encoder has no blocks that can be found.
        TrainingError: it is on, and torch cannot do it here.
    """
    pays = runtime.device.type == "cuda" and total_steps >= _STEPS_THAT_PAY
    if config.compile == "off" or (config.compile == "auto" and (not pays or _is_special(config))):
        return
    progress.note("compiling the model's layers, which takes up to a minute (--compile off: not)")
    # What leaves out patches hooks into the first block, and breaks what is compiled in two.
    layers = [one for one in blocks(encoder, "compile") if not one._forward_pre_hooks]
    try:
        for layer in layers:
            # Random numbers as without: of a chunk they are drawn twice, first without gradients.
            layer.compile(dynamic=False, options={"fallback_random": True})
        with only_tried(encoder, runtime):
            forward_and_backward(encoder, runtime, black(encoder, runtime, side, chunk_size))
    except Exception as error:  # compilers raise nearly everything
        for layer in layers:
            layer._compiled_call_impl = None  # there is no public way back
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if config.compile == "on":
            raise TrainingError(
                f"torch cannot compile the layers of {encoder.model_name} here ({reason}); set "
                "--compile off"
            ) from error
        progress.warn(f"torch cannot compile the model's layers ({reason}): steps take longer")


def _is_special(config: TrainConfig) -> bool:
    """Whether layers are of a kind that nobody has measured compiled."""
    return config.sharding != "none" or config.lora_rank is not None
