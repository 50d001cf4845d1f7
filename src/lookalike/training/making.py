"""What a run is made of, from its configuration: the encoder, its reader, and what trains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lookalike.config import TrainConfig
from lookalike.data.images import ImageSet
from lookalike.data.reading.cache import DecodeCache
from lookalike.data.reading.loader import ImageLoader
from lookalike.data.transforms import Augmentation
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.layers import drop_patches, freeze_layers, on_device
from lookalike.model.lora import add_lora
from lookalike.model.quick_gelu import train_in_fewer_passes
from lookalike.progress import Progress
from lookalike.runtime.device import Runtime
from lookalike.training.losses.registry import make_objective
from lookalike.training.optimization.averaging import WeightAverage
from lookalike.training.optimization.optimizer import make_optimizer
from lookalike.training.regularizers.anchors import make_anchors
from lookalike.training.step.batch_memory import find_chunk_size
from lookalike.training.step.learner import Learner
from lookalike.training.step.parallel import check_trainable, shard


def make_encoder(
    config: TrainConfig, runtime: Runtime, resume: Path | None, saved: dict[str, Any] | None
) -> CLIPEncoder:
    """The encoder on its device, with those of its weights trainable that are to be trained.

    Raises:
        LookalikeError: it cannot be loaded, or not be trained in this way.
    """
    # A resumed run's architecture and files come from its checkpoint: the model it started
    # from may be out of reach by now.
    encoder = CLIPEncoder(
        str(resume) if resume else config.model_name,
        embedding=config.embedding,
        gradient_checkpointing=config.gradient_checkpointing,
        checkpoint=saved,
    )
    check_trainable(encoder, runtime, config)
    train_in_fewer_passes(encoder)
    if config.frozen_layers:
        freeze_layers(encoder, config.frozen_layers)
    if config.patch_dropout:
        drop_patches(encoder, config.patch_dropout)
    if config.lora_rank is not None:
        add_lora(encoder, rank=config.lora_rank, targets=config.lora_targets)
    if config.sharding == "full":
        shard(encoder, runtime)
    side = encoder.train_side(config.train_size)
    return on_device(encoder, runtime, side=side, patch_dropout=config.patch_dropout)


def make_loader(
    config: TrainConfig,
    runtime: Runtime,
    encoder: CLIPEncoder,
    images: ImageSet,
    side: int | None,
    cache: DecodeCache | None = None,
) -> ImageLoader:
    """Reads images as training sees them: at its own size, and changed at random.

    `side` is that size in px; None: the encoder's own. `cache` keeps decoded images.

    Raises:
        LookalikeError: the encoder cannot take images of that size.
    """
    how = encoder.preprocessing_at(side) if side else encoder.preprocessing
    return ImageLoader(
        images.refs,
        replace(how, exact=config.exact_pixels),
        runtime,
        max_megapixels=config.max_megapixels,
        augmentation=Augmentation(config.augmentation, config.min_crop_area, config.color_jitter),
        labels=images.labels,
        cache=cache,
    )


def make_learner(
    config: TrainConfig,
    runtime: Runtime,
    encoder: CLIPEncoder,
    classes: Sequence[str],
    progress: Progress,
    *,
    part_size: int,
    total_steps: int,
    side: int | None,
    saved: dict[str, Any] | None,
) -> Learner:
    """What trains the encoder.

    Args:
        config: objective, rates, and what holds the encoder to the model it came from.
        runtime: device, precision and processes.
        encoder: made by `make_encoder`.
        classes: class i is called `classes[i]`.
        progress: where embedding captions is shown.
        part_size: images of a step in each process.
        total_steps: of the whole run.
        side: of these images, in px; None: the encoder's own.
        saved: the checkpoint of a resumed run, whose state is put back elsewhere.

    Raises:
        LookalikeError: the configuration does not fit the encoder, or the memory.
    """
    average: WeightAverage | None = None
    if config.ema_decay is not None:
        average = WeightAverage(encoder.trainable_parameters(), config.ema_decay)
    anchors = make_anchors(config, encoder, classes, progress, saved=saved)
    with runtime.autocast():
        dim = encoder.dim
    objective = make_objective(
        config, num_classes=len(classes), dim=dim, total_steps=total_steps
    ).to(runtime.device)
    return Learner(
        encoder,
        objective,
        make_optimizer(encoder, config, objective.parameters()),
        runtime,
        chunk_size=find_chunk_size(
            config.batch_memory,
            part_size,
            encoder,
            runtime,
            saved=saved["chunk_size"] if saved else None,
            side=side,
        ),
        max_grad_norm=config.max_grad_norm,
        average=average,
        anchors=anchors,
    )
