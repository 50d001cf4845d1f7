"""A training run from its configuration: each of its parts, and all of them together."""

from __future__ import annotations

import secrets
from dataclasses import replace

import torch
from torch import nn

from lookalike.config import TrainConfig
from lookalike.data.images import ImageSet
from lookalike.data.reading.cache import DecodeCache, make_cache
from lookalike.data.reading.loader import ImageLoader
from lookalike.data.sampler import BalancedBatchSampler
from lookalike.data.transforms import Augmentation
from lookalike.errors import CheckpointError, TrainingError, first_line
from lookalike.evaluation.protocol import find_holdout, load_protocol
from lookalike.evaluation.retrieval import refuse_learned_classes
from lookalike.files import shown
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.layers import drop_patches, freeze_layers, on_device
from lookalike.model.lora import add_lora
from lookalike.model.quick_gelu import train_in_fewer_passes
from lookalike.progress import Progress
from lookalike.runtime.device import Runtime
from lookalike.runtime.memory import check_memory, enough_memory
from lookalike.runtime.randomness import restore_random_state
from lookalike.training import startup
from lookalike.training.checkpoints.folder import RunFolder
from lookalike.training.checkpoints.resume import Resumed
from lookalike.training.checkpoints.saving import Checkpoints, bytes_of_checkpoint
from lookalike.training.data import TrainingData, check_divisible, read_training_images
from lookalike.training.evaluator import Evaluator
from lookalike.training.history import TrainingState
from lookalike.training.losses.registry import make_objective
from lookalike.training.optimization.optimizer import make_optimizer
from lookalike.training.optimization.schedule import whole_warmup
from lookalike.training.regularizers import make_regularizers
from lookalike.training.sharding import check_trainable, shard
from lookalike.training.step.batch_memory import find_chunk_size
from lookalike.training.step.compiling import compile_layers
from lookalike.training.step.step import TrainingStep
from lookalike.training.trainer import Trainer


def make_trainer(
    config: TrainConfig,
    runtime: Runtime,
    progress: Progress,
    *,
    resumed: Resumed | None,
    objective: nn.Module | None = None,
) -> Trainer:
    """Reads and checks everything that a run needs, says what it found, and writes nothing.

    `objective` is used in place of the one that the configuration names. What is wrong is raised as
    a LookalikeError, here and in what is below.
    """
    world = runtime.world
    check_divisible(world, config.n_classes_per_batch, config.n_samples_per_class)
    folder = RunFolder(config, resumed.path if resumed else None)
    if resumed:
        resumed.check_settings(config)
    cache = make_cache(config, progress)
    holdout = find_holdout(config)
    images = read_training_images(config, holdout, progress)
    if resumed:
        resumed.check_images(images)
    sampler = BalancedBatchSampler(
        images.images.labels or [], config.n_classes_per_batch, config.n_samples_per_class,
        singletons=config.singletons, class_balance=config.class_balance, seed=config.seed,
    )  # fmt: skip
    protocol = load_protocol(config, progress, holdout)

    with enough_memory(
        TrainingError,
        f"{runtime.device} has too little memory for the model and what trains it",
        "free some, use a smaller model, or add --lora-rank 8",
    ):
        encoder = make_encoder(config, runtime, resumed)
        if protocol is not None and resumed is None:
            refuse_learned_classes(encoder, protocol)
        loader = make_loader(config, runtime, encoder, images.images, cache, progress)
        data = TrainingData(config, images, sampler, loader, cache, world, progress)
        step = make_step(config, runtime, encoder, data, progress, resumed, objective)
    evaluator = Evaluator(config, protocol, encoder, runtime, progress, folder, cache)
    if cache is not None:
        world.on_main(cache.prepare)  # by now it knows what will be read
    checkpoints = Checkpoints(config, folder, step, data, holdout, progress)
    state = TrainingState(run=world.on_main(lambda: secrets.token_hex(8)))
    lines = startup.describe(config, runtime, data, step, protocol)
    if resumed:
        state, checkpoints.newest = resumed.restore(step, data), resumed.path
        evaluator.resume(state)
        lines += startup.describe_resumed(config, resumed.path, state)
    trainer = Trainer(config, runtime, progress, data, step, checkpoints, evaluator, state)

    for line in lines:
        progress.note(line)
    left, size = config.num_epochs - state.epoch, bytes_of_checkpoint(step)
    of_disk = startup.warnings_of_disk(config, folder.path, left, size)
    for warning in startup.warnings_of(config, data, protocol) + of_disk:
        progress.warn(warning)
    compile_layers(
        config, encoder, runtime, progress, chunk_size=step.chunk_size, part_size=data.part_size,
        steps_left=data.total_steps - trainer.steps_done,
    )  # fmt: skip
    _set_random_numbers(config, runtime, progress, resumed)
    return trainer


def make_encoder(config: TrainConfig, runtime: Runtime, resumed: Resumed | None) -> CLIPEncoder:
    """Returns the encoder on its device, with those of its weights trainable that are to be."""
    # A resumed run's architecture and files come from its checkpoint: the model it started
    # from may be out of reach by now.
    encoder = CLIPEncoder(
        str(resumed.path) if resumed else config.model_name,
        embedding=config.embedding,
        gradient_checkpointing=config.gradient_checkpointing,
        checkpoint=resumed.content if resumed else None,
    )
    check_trainable(encoder, runtime, config)
    train_in_fewer_passes(encoder)
    if config.frozen_layers:
        freeze_layers(encoder, config.frozen_layers)
    if config.patch_dropout:
        drop_patches(encoder, config.patch_dropout)
    if config.lora_rank is not None:
        add_lora(encoder, rank=config.lora_rank)
    if config.sharding == "full":
        shard(encoder, runtime)
    side = encoder.train_side(config.train_size)
    return on_device(encoder, runtime, side=side, patch_dropout=config.patch_dropout)


def make_loader(
    config: TrainConfig,
    runtime: Runtime,
    encoder: CLIPEncoder,
    images: ImageSet,
    cache: DecodeCache | None = None,
    progress: Progress | None = None,
) -> ImageLoader:
    """Returns a loader of images as training sees them: at its own size, and changed at random."""
    side = encoder.train_side(config.train_size)
    how = encoder.preprocessing_at(side) if side else encoder.preprocessing
    size = config.n_classes_per_batch * config.n_samples_per_class // runtime.world.size
    check_memory(
        torch.device("cpu"), size * 3 * how.height * how.width * runtime.world.local_size,
        f"a batch of {size:,} images of {how.width}x{how.height} px",
        "lower --n-classes-per-batch or --n-samples-per-class",
    )  # fmt: skip
    return ImageLoader(
        images.refs,
        replace(how, exact=config.exact_pixels),
        runtime,
        max_megapixels=config.max_megapixels,
        augmentation=Augmentation(config.augmentation, config.min_crop_area, config.color_jitter),
        labels=images.labels,
        cache=cache,
        progress=progress,
    )


def make_step(
    config: TrainConfig,
    runtime: Runtime,
    encoder: CLIPEncoder,
    data: TrainingData,
    progress: Progress,
    resumed: Resumed | None = None,
    objective: nn.Module | None = None,
) -> TrainingStep:
    """Returns what trains the encoder; a resumed run's state is put back elsewhere."""
    saved, classes = resumed.content if resumed else None, data.images.classes
    if resumed:
        resumed.check_baseline(config, encoder)
    regularizers = make_regularizers(config, encoder, classes, progress, saved=saved)
    with runtime.autocast():
        dim = encoder.dim
    if objective is None:
        check_memory(
            runtime.device, config.cross_batch_memory * dim * 4,
            f"cross_batch_memory of {config.cross_batch_memory:,} embeddings of {dim:,} numbers",
            "lower --cross-batch-memory",
        )  # fmt: skip
        warmup_steps = whole_warmup(config.warmup_steps, data.total_steps)
        objective = make_objective(config, len(classes), dim, warmup_steps)
    objective.to(runtime.device)
    optimizer = make_optimizer(encoder, config, objective.parameters())
    chunk_size = find_chunk_size(
        config.batch_memory, data.part_size, encoder, runtime,
        saved=saved["chunk_size"] if saved else None, side=encoder.train_side(config.train_size),
    )  # fmt: skip
    return TrainingStep(
        encoder, objective, optimizer, runtime, chunk_size=chunk_size,
        max_grad_norm=config.max_grad_norm, regularizers=regularizers,
    )  # fmt: skip


def _set_random_numbers(
    config: TrainConfig, runtime: Runtime, progress: Progress, resumed: Resumed | None
) -> None:
    """Takes up those of dropout where they were saved; each process has others."""
    states, rank = resumed.content["random_states"] if resumed else [], runtime.world.rank
    fits = len(states) == runtime.world.size
    try:
        if fits and restore_random_state(states[rank], runtime.device):
            return
    except (RuntimeError, TypeError) as error:
        where = shown(resumed.path) if resumed else ""
        raise CheckpointError(
            f"the random numbers in {where} cannot be continued ({first_line(error)}): it is "
            "damaged, or of another release of PyTorch. Resume from another checkpoint of the run"
        ) from error
    if rank:  # the first one has those that a single process would have
        torch.manual_seed(config.seed + rank)
    if resumed:
        other = f"by a different number of processes ({len(states)})"
        what = "on another kind of device" if fits else other
        progress.warn(
            f"the run was saved {what}, so its random numbers cannot be continued exactly; new "
            "ones are drawn"
        )
