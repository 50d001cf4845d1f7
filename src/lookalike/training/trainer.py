"""The training loop: evaluate, save, stop?, step, log."""

from __future__ import annotations

from dataclasses import asdict

from lookalike.tracking.course import Tracking
from lookalike.training.checkpoints.interrupt import deferred_interrupt
from lookalike.training.history import TrainResult
from lookalike.training.run import Run


def to_the_end(run: Run, tracking: Tracking) -> TrainResult:
    """All that is left to do of a run."""
    config, state, world = run.config, run.state, run.world
    while True:
        if state.step == 0:
            run.evaluate()
            tracking.epoch(state.epoch, state.loss, run.measurements.history[-1].all_metrics)
        if run.is_finished():
            return run.result()
        title = f"epoch {state.epoch + 1}/{config.num_epochs}"
        done = state.step * run.batch_size
        with (
            deferred_interrupt(quiet=not world.is_main) as interrupt,
            run.saving_on_failure(interrupt),
            run.progress.task(title, run.images_per_epoch, done=done) as task,
        ):
            for batch, others in run.batches():
                stepped, learning_rate = run.step(batch, others)
                state.finish_step(stepped.loss)
                task.advance(run.batch_size, loss=state.mean_loss, lr=learning_rate)
                numbers = {**asdict(stepped), "learning_rate": learning_rate}
                tracking.step(run.steps_done, run.batch_size, numbers)
                if world.any_of(interrupt.requested):
                    break
                run.autosave()
            else:
                state.finish_epoch()
                run.save_epoch()
            if world.any_of(interrupt.requested):
                run.save_and_stop()
