"""The training loop: evaluate, save, stop?, step, log."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from lookalike.config import TrainConfig
from lookalike.model.pretrained import read_checkpoint
from lookalike.processes import joined
from lookalike.progress import Progress, SilentProgress, default_progress
from lookalike.runtime import make_runtime, seeded
from lookalike.tracking.course import Tracking, make_tracker
from lookalike.training.outcome import TrainResult
from lookalike.training.run import Run
from lookalike.training.saving.checkpoint import check_can_go_on
from lookalike.training.saving.interrupt import deferred_interrupt


def train(
    config: TrainConfig, *, resume: str | Path | None = None, progress: Progress | None = None
) -> TrainResult:
    """Fine-tunes an encoder, evaluating before the first step and after each epoch.

    Writes `weights/encoder_epoch_XX.pth`, `results/retrieval_results_epoch_XX.json` and
    `results/metrics_epoch_XX.json` under `config.out`, and, anew after each epoch, the page
    `results/report.html`. With the same configuration on the same CPU the outcome is the same
    to the last bit, whether or not the run was interrupted.

    Processes that `torchrun` started train together: the batch is divided among them, the first
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
    with joined() as processes, ExitStack() as at_the_end:
        progress = (progress or default_progress()) if processes.is_first else SilentProgress()
        saved = read_checkpoint(path) if path else None
        if saved is not None and path is not None:
            check_can_go_on(saved, path)
        # Unless told otherwise a resumed run keeps its precision, wherever it goes on.
        kept = saved["precision"] if saved and config.precision == "auto" else config.precision
        runtime = make_runtime(config.device, kept, config.num_workers, processes)
        tracker = processes.kept_by_first(lambda: make_tracker(config, progress))
        at_the_end.enter_context(seeded(config.seed, runtime.device))
        run = Run(config, runtime, progress, resume=path, saved=saved)
        del saved  # as large as the model and its optimiser
        tracking = at_the_end.enter_context(
            Tracking(tracker, config, run=run.state.run, step=run.steps_done, progress=progress)
        )
        return _to_the_end(run, tracking)


def _to_the_end(run: Run, tracking: Tracking) -> TrainResult:
    """All that is left to do of a run."""
    config, state, processes = run.config, run.state, run.processes
    while True:
        if state.step == 0:
            run.evaluate()
            tracking.epoch(state.epoch, state.loss, run.measurements.history[-1].all_metrics)
        if run.is_finished():
            return run.result()
        title = f"epoch {state.epoch + 1}/{config.num_epochs}"
        done = state.step * run.batch_size
        with (
            deferred_interrupt(quiet=not processes.is_first) as interrupt,
            run.saving_on_failure(interrupt),
            run.progress.task(title, run.images_per_epoch, done=done) as task,
        ):
            for batch, others in run.batches():
                stepped, learning_rate = run.step(batch, others)
                state.finish_step(stepped.loss)
                task.advance(run.batch_size, loss=state.mean_loss, lr=learning_rate)
                numbers = {**asdict(stepped), "learning_rate": learning_rate}
                tracking.step(run.steps_done, run.batch_size, numbers)
                if processes.any_of(interrupt.requested):
                    break
                run.autosave()
            else:
                state.finish_epoch()
                run.save_epoch()
            if processes.any_of(interrupt.requested):
                run.save_and_stop()
