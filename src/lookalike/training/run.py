"""Everything one training run holds, and the things it can do; `trainer.py` says in which order."""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch

from lookalike.config import TrainConfig
from lookalike.data.images import ImageSet
from lookalike.data.reading.cache import make_cache
from lookalike.data.reading.loader import ImageLoader
from lookalike.data.reading.reader import Batch, Request
from lookalike.data.sampler import BalancedBatchSampler
from lookalike.errors import (
    DataError,
    Interrupted,
    NonFiniteError,
    NoPositivesError,
    OutputError,
    TrainingError,
)
from lookalike.evaluation.protocol import find_holdout, load_protocol
from lookalike.evaluation.results import remove_mixture_results
from lookalike.evaluation.retrieval import refuse_learned_classes
from lookalike.files import shown, write_json
from lookalike.progress import Progress
from lookalike.runtime.device import Runtime
from lookalike.runtime.memory import enough_memory
from lookalike.runtime.randomness import restore_random_state
from lookalike.training.checkpoints.autosave import Autosave
from lookalike.training.checkpoints.checkpoint import (
    TrainingState,
    check_same_images,
    check_same_settings,
    restore_checkpoint,
    save_checkpoint,
)
from lookalike.training.checkpoints.folder import RunFolder
from lookalike.training.checkpoints.interrupt import Interrupt
from lookalike.training.data import read_training_images
from lookalike.training.evaluator import Measurements
from lookalike.training.history import TrainResult
from lookalike.training.interpolation import finish_with_mixture
from lookalike.training.making import make_encoder, make_learner, make_loader
from lookalike.training.optimization.optimizer import (
    learning_rate_at,
    set_learning_rate,
)
from lookalike.training.regularizers.anchors import UNLABELLED
from lookalike.training.regularizers.others import read_other_images
from lookalike.training.startup import UnreadableTraining, introduce, tell_cache, tell_early_stop
from lookalike.training.step.compiling import compile_layers
from lookalike.training.step.learner import Stepped
from lookalike.training.step.parallel import read_together, share_of_batch

# Of several processes all find these at the same point of the same step.
_MET_BY_ALL = (DataError, NoPositivesError, NonFiniteError, OutputError)


class Run:
    """One training run: made of a configuration, or of one and a checkpoint to go on from.

    Making it reads and checks everything a run needs, and writes nothing.
    """

    def __init__(
        self,
        config: TrainConfig,
        runtime: Runtime,
        progress: Progress,
        *,
        resume: Path | None,
        saved: dict[str, Any] | None,
    ) -> None:
        self.config, self.runtime, self.progress = config, runtime, progress
        self.world = runtime.world
        self.own_places = share_of_batch(
            self.world, config.n_classes_per_batch, config.n_samples_per_class
        )
        self.folder = RunFolder(config, resume)
        if saved is not None and resume is not None:
            check_same_settings(saved, resume, config)
        self.cache = make_cache(config, progress)
        self._read_images(resume, saved)
        with enough_memory(
            TrainingError,
            f"{runtime.device} has too little memory for the model and what trains it",
            "free some, take a smaller model, or add --lora-rank 8",
        ):
            self._make_learner(resume, saved)
        self.measurements = Measurements(
            config, self.protocol, self.encoder, runtime, progress, self.folder, self.cache
        )
        if self.cache is not None:
            self.world.on_main(self.cache.prepare)  # by now it knows what will be read
        self.state = TrainingState(run=self.world.on_main(lambda: secrets.token_hex(8)))
        self.last_saved: Path | None = None
        self.saved_epochs: list[Path] = []
        self._autosave = Autosave(config.autosave_minutes)
        if saved is not None and resume is not None:
            self.state = restore_checkpoint(
                saved, resume, learner=self.learner, sampler=self.sampler
            )
            self.last_saved = resume
            self.measurements.take_up(self.state)
        introduce(self, resume)
        compile_layers(
            config, self.encoder, runtime, progress, chunk_size=self.learner.chunk_size,
            part_size=self.part_size, steps_left=self.total_steps - self.steps_done,
            side=self.train_side,
        )  # fmt: skip
        self._set_random_numbers(saved)

    def _read_images(self, resume: Path | None, saved: dict[str, Any] | None) -> None:
        """Lists what is learned from, in which batches, and what is tested on."""
        config, progress = self.config, self.progress
        self.holdout = find_holdout(config)
        self.images = read_training_images(config, self.holdout, progress)
        self.others = read_other_images(config, progress)
        self.unreadable = UnreadableTraining(self.images, self.others, progress)
        if saved is not None and resume is not None:
            check_same_images(saved, resume, self.images, self.others)
        self.sampler = BalancedBatchSampler(
            self.images.images.labels or [],
            config.n_classes_per_batch,
            config.n_samples_per_class,
            singletons=config.singletons,
            class_balance=config.class_balance,
            seed=config.seed,
        )
        self.batch_size = config.n_classes_per_batch * config.n_samples_per_class
        self.images_per_epoch = len(self.sampler) * self.batch_size
        self.protocol = load_protocol(config, progress, self.holdout)

    def _make_learner(self, resume: Path | None, saved: dict[str, Any] | None) -> None:
        """Loads the encoder, and makes what trains it."""
        config, runtime = self.config, self.runtime
        self.encoder = make_encoder(config, runtime, resume, saved)
        if self.protocol is not None and resume is None:
            refuse_learned_classes(self.encoder, self.protocol)
        self.train_side = side = self.encoder.train_side(config.train_size)
        self.loader = self._make_loader(self.images.images)
        self.part_size = self.batch_size // self.world.size
        if self.others is not None:
            self.other_loader = self._make_loader(self.others.images)
            self.part_size *= 2
        self.learner = make_learner(
            config, runtime, self.encoder, self.images.classes, self.progress,
            part_size=self.part_size, total_steps=self.total_steps, side=side, saved=saved,
        )  # fmt: skip

    def _make_loader(self, images: ImageSet) -> ImageLoader:
        return make_loader(
            self.config, self.runtime, self.encoder, images, self.train_side, self.cache
        )

    def _set_random_numbers(self, saved: dict[str, Any] | None) -> None:
        """Those of dropout: taken up where they were saved, and others in each process."""
        states, rank = saved["random_states"] if saved else [], self.world.rank
        if len(states) == self.world.size:
            if restore_random_state(states[rank], self.runtime.device):
                return
            what = "on another kind of device"
        else:
            what = f"by another number of processes ({len(states)})"
        if rank:  # the first one has those that a single process would have
            torch.manual_seed(self.config.seed + rank)
        if saved:
            self.progress.warn(
                f"the run was saved {what}, whose random numbers cannot be taken up here; it goes "
                "on with others"
            )

    def batches(self) -> Iterator[tuple[Batch, Batch | None]]:
        """The batches of the running epoch that are not done yet, this process's part of each;
        beside each the other images of the step, where distillation has such.
        """
        epoch, done = self.state.epoch, self.state.step
        if done == 0:
            self.sampler.set_epoch(epoch)
        own = self.own_places
        requests = (
            Request(whole[own], (self.config.seed, epoch, done + number), own.start, whole)
            for number, whole in enumerate(self.sampler)
        )
        batches = read_together(self.loader.read(requests), self.world)
        if self.others is None:
            return ((batch, None) for batch in batches)
        more = self.others.requests(self.steps_done, len(self.sampler) - done, own)
        return zip(batches, read_together(self.other_loader.read(more), self.world), strict=True)

    def step(self, batch: Batch, others: Batch | None) -> tuple[Stepped, float]:
        """One step of the optimiser; what it came to, and the learning rate."""
        self.unreadable.tell(batch)
        learning_rate = self._set_learning_rate()
        pixels, labels = batch.pixels, self.images.labels[batch.indices[batch.own]]
        if others is not None:
            self.unreadable.tell_of_others(others)
            pixels = torch.cat([pixels, others.pixels])
            labels = torch.cat([labels, labels.new_full((len(others.pixels),), UNLABELLED)])
        device = self.runtime.device
        try:
            stepped = self.learner.step(
                pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            )
        except NonFiniteError as error:
            names = ", ".join(shown(self.images.images.names[i]) for i in batch.indices)
            raise NonFiniteError(
                f"{error} in step {self.state.step + 1} of epoch {self.state.epoch + 1}, with the "
                f"batch: {names}. {self._what_may_help()}"
            ) from error
        return stepped, learning_rate

    def _what_may_help(self) -> str:
        """Against numbers that are not finite; the same step again would come to the same."""
        new_run = "start a new run with a lower --learning-rate"
        if self.runtime.precision == "fp32":
            return new_run.capitalize()
        return f"Try --precision fp32, in a resumed run as well, or {new_run}"

    @property
    def total_steps(self) -> int:
        """Of all epochs together."""
        return self.config.num_epochs * len(self.sampler)

    @property
    def steps_done(self) -> int:
        """Of all epochs so far."""
        return self.state.epoch * len(self.sampler) + self.state.step

    def _set_learning_rate(self) -> float:
        """That of the step to come, for all parameters."""
        config = self.config
        step = self.steps_done
        learning_rate = learning_rate_at(
            step,
            peak=config.learning_rate,
            schedule=config.schedule,
            warmup_steps=config.warmup_steps,
            total_steps=self.total_steps,
        )
        set_learning_rate(
            self.learner.optimizer, learning_rate, only_head=step < config.head_warmup_steps
        )
        return learning_rate

    def evaluate(self) -> None:
        """Measures the model as it is now, and writes the epoch's result files.

        Only now is it known which checkpoint is the best, and so which ones need not be kept.
        """
        try:
            with self.learner.measured():
                self.measurements.measure(self.state)
        except KeyboardInterrupt:
            self.save_and_stop()
        best = self.measurements.best
        removed = self.world.on_main(
            lambda: self.folder.keep_newest(
                self.state.epoch, self.config.keep, best=best.epoch if best else None
            )
        )
        self.saved_epochs = [path for path in self.saved_epochs if path not in removed]

    def is_finished(self) -> bool:
        """Whether all epochs are done, or enough of them in a row brought nothing."""
        if self.state.epoch >= self.config.num_epochs:
            return True
        stops = self.state.step == 0 and self.measurements.is_out_of_patience
        if stops:
            tell_early_stop(self)
        return stops

    def save_epoch(self) -> None:
        """Writes the checkpoint of the epoch just done; one of its middle is outdated now."""
        path = self.folder.epoch_file(self.state.epoch)
        self._save(path)
        self.saved_epochs.append(path)
        self.world.on_main(self._remove_outdated)

    def _remove_outdated(self) -> None:
        self.folder.interrupted.unlink(missing_ok=True)
        if self.config.interpolation:  # there will be a new mixture, of this epoch or a later one
            self.folder.mixture.unlink(missing_ok=True)
            remove_mixture_results(self.folder.path)

    def autosave(self) -> None:
        """Writes a checkpoint of the middle of the epoch where one is due.

        Where that fails the run goes on: there may be room by the end of the epoch.
        """
        if self.state.step == len(self.sampler):
            return
        if not self.world.any_of(self._autosave.is_due()):  # each looks at its own clock
            return
        try:
            self._save(self.folder.interrupted)
        except OutputError as error:
            self.progress.warn(f"no checkpoint in the middle of the epoch: {error}")
            self._autosave.restart()

    def save_and_stop(self) -> NoReturn:
        """Honours Ctrl-C: saves what is not saved yet, and says how to go on."""
        state = self.state
        if state.step:
            where = f"step {state.step} of {len(self.sampler)} in epoch {state.epoch + 1}"
            self._save(self.folder.interrupted)
        elif state.epoch:
            where = f"the end of epoch {state.epoch}"
        else:
            again = "; to start anew: --overwrite" if self.measurements.files else ""
            raise Interrupted(f"stopped before the first step; there was nothing to save{again}")
        raise Interrupted(f"stopped at {where}, saved as {self._how_to_go_on()}")

    @contextmanager
    def saving_on_failure(self, interrupt: Interrupt) -> Iterator[None]:
        """An error inside the block does not lose the steps before it."""
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:
            # What one of several processes meets alone cannot be saved by all of them together.
            if self.world.size > 1 and not isinstance(error, _MET_BY_ALL):
                raise
            # Whoever asks a process group to stop stops the readers as well, and they fail first.
            if self.world.any_of(interrupt.requested) and self.learner.between_steps:
                self.save_and_stop()
            self._save_after_failure(error)
            raise

    def _save_after_failure(self, error: Exception) -> None:
        if not self.state.step or not self.learner.between_steps:
            return
        try:
            self._save(self.folder.interrupted)
        except OutputError as failed:
            self.progress.warn(str(failed))
            return
        if not isinstance(error, NonFiniteError):
            how = self._how_to_go_on()
        elif self.runtime.precision != "fp32":
            how = f"{self._how_to_go_on()} --precision fp32"
        else:
            path = self.folder.interrupted
            model = shown(shlex.quote(os.fspath(path)))
            how = f"{shown(path)}. A new run begins there with --model-name {model}"
        self.progress.warn(
            f"the {self.state.step} steps done of epoch {self.state.epoch + 1} are saved as {how}"
        )

    def result(self) -> TrainResult:
        """What the finished run came to."""
        measured = self.measurements
        try:
            trade_off = finish_with_mixture(self)
        except KeyboardInterrupt:
            self.save_and_stop()
        tell_cache(self)
        files = self._files_in_order()
        unreadable = list(dict.fromkeys(self.unreadable.images + measured.unreadable))
        if unreadable and files:  # a finished run that is resumed has nothing to add
            path = self.folder.path / "results" / "unreadable.json"
            self.world.on_main(lambda: write_json(path, [asdict(one) for one in unreadable]))
            files.append(path)
        return TrainResult(
            history=measured.history,
            best=measured.best,
            retrieval=measured.retrieval,
            checkpoint=self.last_saved,
            files=files,
            unreadable=unreadable,
            encoder=self.encoder,
            trade_off=trade_off,
        )

    def _files_in_order(self) -> list[Path]:
        return self.saved_epochs + self.measurements.files

    def _save(self, path: Path) -> None:
        self.world.on_main(self.folder.make_room)
        save_checkpoint(
            path, self.state, config=self.config, learner=self.learner, sampler=self.sampler,
            images=self.images, others=self.others,
            holdout=asdict(self.holdout) if self.holdout else None,
        )  # fmt: skip
        self.last_saved = path
        self._autosave.restart()

    def _how_to_go_on(self) -> str:
        path, command = os.fspath(self.last_saved or ""), "lookalike train"
        if self.world.size > 1:
            command = f"torchrun --nproc-per-node {self.world.local_size} -m {command}"
        return f"{shown(path)}. Go on with: {command} --resume {shown(shlex.quote(path))}"
