"""`lookalike.train`: fine-tunes an encoder, and shows how much better it retrieves."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from lookalike.config import TrainConfig
from lookalike.model.pretrained import read_checkpoint
from lookalike.progress import Progress, SilentProgress, default_progress
from lookalike.runtime.device import make_runtime
from lookalike.runtime.randomness import seeded
from lookalike.runtime.world import joined
from lookalike.tracking.course import Tracking, make_tracker
from lookalike.training.checkpoints.checkpoint import check_can_go_on
from lookalike.training.history import TrainResult
from lookalike.training.run import Run
from lookalike.training.trainer import to_the_end


def train(
    config: TrainConfig, *, resume: str | Path | None = None, progress: Progress | None = None
) -> TrainResult:
    """Fine-tunes an encoder, evaluating before the first step and after each epoch.

    Writes `weights/encoder_epoch_XX.pth`, `results/retrieval_results_epoch_XX.json` and
    `results/metrics_epoch_XX.json` under `config.out`, and, anew after each epoch, the page
    `results/report.html`. With the same configuration on the same CPU the outcome is the same
    to the last bit, whether or not the run was interrupted.

    World that `torchrun` started train together: the batch is divided among them, the first
    one writes and shows progress, and all return the same.

    Args:
        config: what to learn from and how.
        resume: a checkpoint of an earlier, unfinished run to go on from.
        progress: where progress is shown; default: stderr, bars if it is a terminal.

    Raises:
        LookalikeError: of the kind that says what is wrong (see `lookalike.errors`).
        Interrupted: on Ctrl-C or SIGTERM, after saving.
    """
    path = Path(resume) if resume else None
    with joined() as world, ExitStack() as at_the_end:
        progress = (progress or default_progress()) if world.is_main else SilentProgress()
        saved = read_checkpoint(path) if path else None
        if saved is not None and path is not None:
            check_can_go_on(saved, path)
        # Unless told otherwise a resumed run keeps its precision, wherever it goes on.
        kept = saved["precision"] if saved and config.precision == "auto" else config.precision
        runtime = make_runtime(config.device, kept, config.num_workers, world)
        tracker = world.kept_on_main(lambda: make_tracker(config, progress))
        at_the_end.enter_context(seeded(config.seed, runtime.device))
        run = Run(config, runtime, progress, resume=path, saved=saved)
        del saved  # as large as the model and its optimiser
        tracking = at_the_end.enter_context(
            Tracking(tracker, config, run=run.state.run, step=run.steps_done, progress=progress)
        )
        return to_the_end(run, tracking)
