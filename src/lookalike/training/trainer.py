"""The training loop: evaluate, save, stop?, step, log."""

from __future__ import annotations

from pathlib import Path

from lookalike.config import TrainConfig
from lookalike.progress import Progress, default_progress
from lookalike.runtime import seeded
from lookalike.training.interrupt import deferred_interrupt
from lookalike.training.run import Run, TrainResult


def train(
    config: TrainConfig, *, resume: str | Path | None = None, progress: Progress | None = None
) -> TrainResult:
    """Fine-tunes an encoder, evaluating before the first step and after each epoch.

    Writes `weights/encoder_epoch_XX.pth`, `results/retrieval_results_epoch_XX.json` and
    `results/metrics_epoch_XX.json` under `config.out`. With the same configuration on the same
    CPU the outcome is the same to the last bit, whether or not the run was interrupted.

    Args:
        config: what to learn from and how.
        resume: a checkpoint of an earlier, unfinished run to go on from.
        progress: where progress is shown; default: stderr, bars if it is a terminal.

    Raises:
        LookalikeError: of the kind that says what is wrong (see `lookalike.errors`).
        Interrupted: on Ctrl-C or SIGTERM, after saving.
    """
    progress = progress or default_progress()
    with seeded(config.seed):
        run = Run(config, Path(resume) if resume else None, progress)
        state = run.state
        while True:
            if state.step == 0:
                run.evaluate()
            if state.epoch >= config.num_epochs:
                return run.result()
            with (
                deferred_interrupt() as interrupt,
                progress.task(
                    f"epoch {state.epoch + 1}/{config.num_epochs}",
                    run.images_per_epoch,
                    done=state.step * run.batch_size,
                ) as task,
            ):
                for batch in run.batches():
                    loss, learning_rate = run.step(batch)
                    state.finish_step(loss)
                    task.advance(run.batch_size, loss=state.mean_loss, lr=learning_rate)
                    if interrupt.requested:
                        break
                else:
                    state.finish_epoch()
                    run.save_epoch()
                if interrupt.requested:
                    run.save_and_stop()
