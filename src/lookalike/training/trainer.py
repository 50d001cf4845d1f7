"""The training loop: evaluate, save, stop?, step, log."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from types import FrameType
from typing import NoReturn

from lookalike.config import TrainConfig
from lookalike.data.reading.reader import Batch
from lookalike.errors import DataError, Interrupted, NonFiniteError, NoPositivesError, OutputError
from lookalike.files import shown, write_json
from lookalike.progress import Progress, counted
from lookalike.runtime.device import Runtime
from lookalike.tracking.course import Tracking
from lookalike.training.checkpoints.saving import Checkpoints
from lookalike.training.data import TrainingData
from lookalike.training.evaluator import Evaluator
from lookalike.training.history import TrainingState, TrainResult
from lookalike.training.optimization.schedule import learning_rate_at, set_learning_rate
from lookalike.training.step.step import Stepped, TrainingStep

# Of several processes all find these at the same point of the same step.
_MET_BY_ALL = (DataError, NoPositivesError, NonFiniteError, OutputError)
_HEARD = b"\nstopping after this step, then saving; once more stops at once and saves nothing\n"


@dataclass(eq=False)
class Trainer:
    """One training run, made by `make_trainer`: its four parts, and how far it has come."""

    config: TrainConfig
    runtime: Runtime
    progress: Progress
    data: TrainingData
    step: TrainingStep
    checkpoints: Checkpoints
    evaluator: Evaluator
    state: TrainingState

    def train(self, tracking: Tracking) -> TrainResult:
        """Does all that is left to do of the run.

        Raises:
            LookalikeError: it cannot go on, or was told to stop; the steps before are saved.
        """
        state, data, world = self.state, self.data, self.runtime.world
        while True:
            if state.step == 0:
                self._evaluate()
                tracking.epoch(state.epoch, state.loss, self.evaluator.history[-1].all_metrics)
            if self._is_finished():
                return self._result()
            title = f"epoch {state.epoch + 1}/{self.config.num_epochs}"
            total, done = data.steps_per_epoch * data.batch_size, state.step * data.batch_size
            with (
                deferred_interrupt(quiet=not world.is_main) as interrupt,
                self._saving_on_failure(interrupt),
                self.progress.task(title, total, done=done) as task,
            ):
                for batch in data.batches(
                    state.epoch, state.step, stop=lambda: interrupt.requested
                ):
                    stepped, learning_rate = self._take_step(batch)
                    state.finish_step(stepped.loss)
                    task.advance(data.batch_size, loss=state.mean_loss, lr=learning_rate)
                    numbers = {**asdict(stepped), "learning_rate": learning_rate}
                    tracking.step(self.steps_done, data.batch_size, numbers)
                    if world.any_of(interrupt.requested):
                        break
                    self.checkpoints.autosave(state)
                else:
                    if state.step == data.steps_per_epoch:  # not stopped while it read
                        state.finish_epoch()
                        self.checkpoints.save_epoch(state)
                if world.any_of(interrupt.requested):
                    self._save_and_stop()

    @property
    def steps_done(self) -> int:
        """Returns the steps of all epochs so far."""
        return self.state.epoch * self.data.steps_per_epoch + self.state.step

    def _evaluate(self) -> None:
        """Measures the model as it is now, and writes the epoch's result files."""
        try:
            with self.step.measured():
                self.evaluator.measure(self.state)
        except KeyboardInterrupt:
            self._save_and_stop()
        best = self.evaluator.best  # so only now it is known which checkpoints need not be kept
        self.checkpoints.keep_newest(self.state.epoch, best=best.epoch if best else None)

    def _is_finished(self) -> bool:
        """Returns true once all epochs are done, or enough of them in a row brought nothing."""
        state, config, best = self.state, self.config, self.evaluator.best
        if state.epoch >= config.num_epochs:
            return True
        since = state.epoch - best.epoch if best else 0
        if state.step or best is None or config.patience is None or since < config.patience:
            return False
        self.progress.note(
            f"stopped after epoch {state.epoch} of {config.num_epochs}: "
            f"{counted(since, 'epoch')} in a row no better than epoch {best.epoch} "
            f"({best.metric} {best.value:.4f}); to continue: --resume with --patience {since + 1} "
            "or more"
        )
        return True

    def _take_step(self, batch: Batch) -> tuple[Stepped, float]:
        """Takes one step of the optimizer; returns what it came to, and the learning rate."""
        learning_rate = learning_rate_at(self.config, self.steps_done, self.data.total_steps)
        set_learning_rate(self.step.optimizer, learning_rate)
        given = (batch.pixels, self.data.images.labels[batch.indices[batch.own]])
        try:
            stepped = self.step.take(
                *(one.to(self.runtime.device, non_blocking=True) for one in given),
                seed=(self.config.seed, self.state.epoch, self.state.step),
            )
        except NonFiniteError as error:
            names = ", ".join(shown(self.data.images.images.names[i]) for i in batch.indices)
            # The same step again would come to the same.
            help_ = "start a new run with a lower --learning-rate"
            if self.runtime.precision != "fp32":
                help_ = f"try --precision fp32, in a resumed run as well, or {help_}"
            raise NonFiniteError(
                f"{error} in step {self.state.step + 1} of epoch {self.state.epoch + 1}, with the "
                f"batch: {names}. {help_[0].upper()}{help_[1:]}"
            ) from error
        return stepped, learning_rate

    def _save_and_stop(self) -> NoReturn:
        """Saves what is not saved yet, and raises Interrupted, which says how to go on."""
        state = self.state
        if state.step:
            steps = self.data.steps_per_epoch
            where = f"step {state.step} of {steps} in epoch {state.epoch + 1}"
            self.checkpoints.save_interrupted(state)
        elif state.epoch:
            where = f"the end of epoch {state.epoch}"
        else:
            again = "; to start over: --overwrite" if self.evaluator.files else ""
            raise Interrupted(f"stopped before the first step; there was nothing to save{again}")
        raise Interrupted(f"stopped at {where}, saved as {self.checkpoints.how_to_go_on()}")

    @contextmanager
    def _saving_on_failure(self, interrupt: Interrupt) -> Iterator[None]:
        """Saves the steps before an error inside the block."""
        world = self.runtime.world
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:
            # What one of several processes meets alone cannot be saved by all of them together.
            if world.size > 1 and not isinstance(error, _MET_BY_ALL):
                raise
            # Whoever asks a process group to stop stops the readers as well, and they fail first.
            if world.any_of(interrupt.requested) and self.step.weights_are_whole:
                self._save_and_stop()
            self._save_after_failure(error)
            raise

    def _save_after_failure(self, error: Exception) -> None:
        """Saves the steps before the one that failed, and says how to go on from them."""
        if not self.state.step or not self.step.weights_are_whole:
            return
        try:
            self.checkpoints.save_interrupted(self.state)
        except OutputError as failed:
            self.progress.warn(str(failed))
            return
        how, path = self.checkpoints.how_to_go_on(), self.checkpoints.folder.interrupted
        if isinstance(error, NonFiniteError) and self.runtime.precision != "fp32":
            how += " --precision fp32"
        elif isinstance(error, NonFiniteError):
            model = shown(shlex.quote(os.fspath(path)))
            how = f"{shown(path)}. To start a new run from there: --model-name {model}"
        self.progress.warn(
            f"the {self.state.step} steps done of epoch {self.state.epoch + 1} are saved as {how}"
        )

    def _result(self) -> TrainResult:
        """Ends training, and returns what the finished run came to."""
        evaluator, world = self.evaluator, self.runtime.world
        encoder = self.step.finish()
        if self.data.cache is not None:
            self.progress.note(f"cache    {self.data.cache.reads_of_all(world)}")
        files = self.checkpoints.epochs + evaluator.files
        unreadable = list(dict.fromkeys(self.data.unreadable + evaluator.unreadable))
        if unreadable and files:  # a finished run that is resumed has nothing to add
            path = self.checkpoints.folder.path / "results" / "unreadable.json"
            world.on_main(lambda: write_json(path, [asdict(one) for one in unreadable]))
            files.append(path)
        return TrainResult(
            evaluator.history, evaluator.best, evaluator.retrieval, self.checkpoints.newest,
            files, unreadable, encoder,
        )  # fmt: skip


class Interrupt:
    """`requested` is true once somebody asked the run to stop."""

    requested = False


@contextmanager
def deferred_interrupt(*, quiet: bool = False) -> Iterator[Interrupt]:
    """Inside the block the first Ctrl-C or SIGTERM is only noted; a second one acts at once.

    A signal in the middle of an optimiser step would leave half of the weights changed; whoever
    runs the steps looks at `requested` between them. Outside of the main thread Python delivers
    no signals, and nothing is changed. `quiet` leaves it to another process to say what happens.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested = True
        if not quiet:
            with suppress(OSError):  # stderr is full or closed: no reason to fail in a step
                os.write(
                    2, _HEARD
                )  # of all ways to print, the one that is safe in a signal handler

    numbers = [signal.SIGINT, signal.SIGTERM]
    # Of a terminal that closes, unless nohup has it ignored.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
