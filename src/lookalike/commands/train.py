"""`lookalike.train`: fine-tunes an encoder, and shows how much better it retrieves."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from lookalike.config import TrainConfig
from lookalike.config.settings import config_from
from lookalike.data.placement import keep_cache_apart, keep_out_of_images
from lookalike.errors import Interrupted
from lookalike.locking import sole_writer
from lookalike.progress import Progress, SilentProgress, default_progress
from lookalike.runtime.device import make_runtime
from lookalike.runtime.randomness import seeded
from lookalike.runtime.world import joined
from lookalike.tracking.course import Tracking, make_tracker
from lookalike.training.checkpoints.resume import Resumed, read_resumed
from lookalike.training.history import TrainResult
from lookalike.training.interpolation import interpolate
from lookalike.training.losses.registry import name_objective
from lookalike.training.make import make_trainer


def train(
    config: TrainConfig | Mapping[str, Any],
    *,
    resume: str | Path | None = None,
    objective: nn.Module | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Fine-tunes an encoder, evaluating before the first step and after each epoch.

    Writes `weights/encoder_epoch_XX.pth`, `results/retrieval_results_epoch_XX.json` and
    `results/metrics_epoch_XX.json` under `config.out`, and, anew after each epoch, the page
    `results/report.html`. With the same configuration on the same CPU the outcome is the same
    to the last bit, whether or not the run was interrupted.

    Processes that `torchrun` started train together: the batch is divided among them, the first
    one writes and shows progress, and all return the same.

    Args:
        config: what to learn from and how; or a mapping of option names to values, as flags or a
            recipe give them (`merge_options` makes one of several). What a mapping does not name
            has its default, and in a resumed run the value that it was saved with.
        resume: an earlier run to go on with: one of its checkpoints, or its folder, which means
            the newest one.
        objective: a module to train with in place of those that ship. It is called once a step, as
            `objective(embeddings, labels)`, with L2-normalised rows of float32 and the numbers of
            their classes, and returns the loss. It is trained along, in place, its parameters with
            AdamW at 1e-3, and its `state_dict` is part of every checkpoint. A resumed run is given
            one of the same class.
        progress: where progress is shown; default: stderr, bars if it is a terminal.

    Raises:
        LookalikeError: of the kind that says what is wrong (see `lookalike.errors`).
        Interrupted: on Ctrl-C or SIGTERM, after saving.
    """
    with joined() as world, ExitStack() as at_the_end:
        progress = (progress or default_progress()) if world.is_main else SilentProgress()
        resumed = read_resumed(resume) if resume is not None else None
        config = name_objective(_settle(config, resumed), objective)
        out, sources = Path(config.out), [config.train, config.test, config.query, config.gallery]
        keep_out_of_images(out, sources)
        keep_cache_apart(config.decode_cache, out, sources)
        world.on_main(lambda: at_the_end.enter_context(sole_writer(out, "results", "weights")))
        precision: str = config.precision
        if resumed and precision == "auto":  # it keeps its own, wherever it goes on
            precision = resumed.content["precision"]
        runtime = make_runtime(config.device, precision, config.num_workers, world)
        tracker = world.kept_on_main(lambda: make_tracker(config, progress))
        at_the_end.enter_context(seeded(config.seed, runtime.device))
        trainer = make_trainer(config, runtime, progress, resumed=resumed, objective=objective)
        del resumed  # as large as the model and its optimizer
        evaluator, state, done = trainer.evaluator, trainer.state, trainer.steps_done
        tracking = Tracking(tracker, config, run=state.run, step=done, progress=progress)
        result = trainer.train(at_the_end.enter_context(tracking))
        if not config.interpolation or result.checkpoint is None:
            return result
        how = trainer.checkpoints.how_to_go_on()
        stopped = f"stopped at the end of epoch {state.epoch}, saved as {how}"
        del trainer  # and with it the optimizer
        try:
            return interpolate(config.model_name, result.checkpoint, evaluator, result)
        except KeyboardInterrupt:
            raise Interrupted(stopped) from None


def training_config(options: Mapping[str, Any], resume: str | Path | None = None) -> TrainConfig:
    """Returns the configuration that `train` would have from a mapping of option names to values.

    Where `options` says nothing else, the settings of the run that `resume` names hold.

    Raises:
        ConfigError: an unknown name or an impossible value.
        CheckpointError: there is nothing to go on from.
    """
    return _settle(options, read_resumed(resume) if resume is not None else None)


def _settle(config: TrainConfig | Mapping[str, Any], resumed: Resumed | None) -> TrainConfig:
    if isinstance(config, TrainConfig):
        return config
    return config_from(TrainConfig, resumed.settings() if resumed else {}, config)
