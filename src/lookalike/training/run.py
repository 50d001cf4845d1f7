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
from lookalike.data.loader import Batch, ImageLoader, Request
from lookalike.data.sampler import BalancedBatchSampler
from lookalike.data.sources import (
    ImageSet,
    keep_readable,
    list_unreadable,
    load_images,
)
from lookalike.data.transforms import Augmentation
from lookalike.errors import (
    ConfigError,
    DataError,
    Interrupted,
    LookalikeError,
    NonFiniteError,
    OutputError,
)
from lookalike.evaluation.protocol import Holdout, Protocol, find_holdout, load_protocol
from lookalike.evaluation.results import report_file, result_files, write_results
from lookalike.evaluation.retrieval import (
    Retrieval,
    evaluate_encoder,
    refuse_learned_classes,
)
from lookalike.files import shown, writable_folder, write_json
from lookalike.model.encoder import CLIPEncoder
from lookalike.progress import Progress
from lookalike.report.epoch.write import write_report
from lookalike.runtime import Runtime, restore_random_state
from lookalike.training.checkpoint import (
    INTERRUPTED,
    TrainingState,
    check_same_pictures,
    check_same_settings,
    epoch_file,
    files_to_replace,
    restore_checkpoint,
    save_checkpoint,
    sweep_unfinished,
)
from lookalike.training.interrupt import Interrupt
from lookalike.training.objectives.supcon import SupConLoss
from lookalike.training.optimization.optimizer import learning_rate_at, make_optimizer
from lookalike.training.outcome import EpochSummary, TrainResult, earlier_epochs


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
        self.out = writable_folder(Path(config.out))
        self._to_replace = files_to_replace(config, self.out, resume)
        if saved is not None and resume is not None:
            check_same_settings(saved, resume, config)
        self.holdout = find_holdout(config)
        images = _listed_training_images(config, self.holdout, progress)
        self.images, self.unreadable = keep_readable(images, config.max_megapixels, progress)
        self.fingerprint = self.images.fingerprint()
        if saved is not None and resume is not None:
            check_same_pictures(saved, resume, self.fingerprint)
        self.sampler = BalancedBatchSampler(
            self.images.labels or [],
            config.n_classes_per_batch,
            config.n_samples_per_class,
            singletons=config.singletons,
            seed=config.seed,
        )
        self.protocol = load_protocol(config, progress, self.holdout)

        # A resumed run's architecture and files come from its checkpoint: the model it started
        # from may be out of reach by now.
        self.encoder = CLIPEncoder(
            str(resume) if resume else config.model_name,
            embedding=config.embedding,
            gradient_checkpointing=config.gradient_checkpointing,
            checkpoint=saved,
        ).to(runtime.device)
        if self.protocol is not None and resume is None:
            refuse_learned_classes(self.encoder, self.protocol)
        self.parameters = [p for _, p in self.encoder.trainable_parameters()]
        self.loss = SupConLoss(config.temperature)
        self.optimizer = make_optimizer(
            self.encoder.trainable_parameters(),
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self.scaler = runtime.grad_scaler()
        self.state = TrainingState(run=secrets.token_hex(8))
        self.last_saved: Path | None = None
        if saved is not None and resume is not None:
            self.state = restore_checkpoint(
                saved, resume, optimizer=self.optimizer, scaler=self.scaler, sampler=self.sampler
            )
            self.last_saved = resume

        how = self.encoder.preprocessing
        self.loader = ImageLoader(
            self.images.paths,
            how,
            runtime,
            max_megapixels=config.max_megapixels,
            augmentation=Augmentation(config.augmentation, config.min_crop_area),
            labels=self.images.labels,
        )
        self.eval_loader: ImageLoader | None = None
        if self.protocol is not None:
            self.eval_loader = ImageLoader(
                self.protocol.files, how, runtime, max_megapixels=config.max_megapixels
            )
        numbers = {label: i for i, label in enumerate(sorted(set(self.images.labels or ())))}
        self.labels = torch.tensor([numbers[label] for label in self.images.labels or ()])
        self.batch_size = config.n_classes_per_batch * config.n_samples_per_class
        self.images_per_epoch = len(self.sampler) * self.batch_size
        self.retrieval: Retrieval | None = None
        self.files: list[Path] = []
        self.history = (
            earlier_epochs(self.out, self.state.run, self.state.epoch, self.protocol)
            if resume
            else []
        )
        self._lost_classes: set[str] = set()
        self.between_steps = True  # False while weights and optimiser are being changed
        self._introduce(resume)
        if saved is not None and not restore_random_state(saved["random_state"], runtime.device):
            progress.warn(
                "the run was saved on another kind of device, whose random numbers cannot be "
                "taken up here; it goes on with others"
            )

    def batches(self) -> Iterator[Batch]:
        """The batches of the running epoch that are not done yet."""
        epoch, done = self.state.epoch, self.state.step
        if done == 0:
            self.sampler.set_epoch(epoch)
        requests = (
            Request(indices, seed=(self.config.seed, epoch, done + number))
            for number, indices in enumerate(self.sampler)
        )
        return self.loader.read(requests)

    def step(self, batch: Batch) -> tuple[float, float]:
        """One step of the optimiser; the batch's loss and the learning rate."""
        config = self.config
        self._tell_unreadable(batch)
        learning_rate = learning_rate_at(
            self.state.epoch * len(self.sampler) + self.state.step,
            peak=config.learning_rate,
            schedule=config.schedule,
            warmup_steps=config.warmup_steps,
            total_steps=config.num_epochs * len(self.sampler),
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

        self.encoder.train()
        labels = self.labels[batch.indices].to(self.runtime.device, non_blocking=True)
        pixels = batch.pixels.to(self.runtime.device, non_blocking=True)
        with self.runtime.autocast():
            embeddings = self.encoder(pixels)
        loss = self.loss(embeddings, labels)
        if not loss.isfinite():
            self._stop_non_finite("loss", loss, batch)

        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        limit = config.max_grad_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        # With gradient scaling an overflow is expected now and then, and the scaler skips it.
        if not self.scaler.is_enabled() and not norm.isfinite():
            self._stop_non_finite("gradient", norm, batch)
        self.between_steps = False
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.between_steps = True
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:  # 17 overflows in a row
            self._stop_non_finite("gradient", norm, batch)
        return loss.item(), learning_rate

    def evaluate(self) -> None:
        """Measures the model as it is now, and writes the epoch's result files."""
        epoch, loss = self.state.epoch, self.state.loss
        if self.history and self.history[-1].epoch == epoch:
            if self._is_reported():
                return  # a resumed run that was measured here before it stopped
            self.history.pop()
        if self.protocol is None or self.eval_loader is None:
            self.history.append(EpochSummary(epoch, loss, None))
            return
        try:
            retrieval = evaluate_encoder(
                self.encoder,
                self.protocol,
                self.eval_loader,
                self.runtime,
                top_k_wanted=self.config.top_k,
                batch_size=self.config.eval_batch_size,
                progress=self.progress,
                title=f"evaluating epoch {epoch}",
            )
        except KeyboardInterrupt:
            self.save_and_stop()
        self._replace_earlier_run()
        about = {"run": self.state.run, "loss": loss, "config": asdict(self.config)}
        self.files += write_results(self.out, epoch, retrieval, self.protocol, about=about)
        self.retrieval = retrieval
        self.unreadable = list(dict.fromkeys(self.unreadable + retrieval.unreadable))
        self.history.append(EpochSummary(epoch, loss, retrieval.metrics))
        if self.config.report:
            self._report(retrieval, self.protocol)

    def _report(self, retrieval: Retrieval, protocol: Protocol) -> None:
        """Writes the page to look at. Where that fails the run goes on: its results are safe."""
        epoch = self.state.epoch
        try:
            path = write_report(self.out, epoch, retrieval, protocol, progress=self.progress)
        except KeyboardInterrupt:
            self.save_and_stop()
        except LookalikeError as error:
            self.progress.warn(f"no report of epoch {epoch}: {error}")
        # Whatever else a page can fail of, such as a plot library: training must not end with it.
        except Exception as error:
            self.progress.warn(f"no report of epoch {epoch}: {type(error).__name__}: {error}")
        else:
            self.files = [file for file in self.files if file != path] + [path]

    def _is_reported(self) -> bool:
        """Whether the report is that of the newest metrics, where there is to be one."""
        if not self.config.report or self.protocol is None:
            return True
        report, metrics = report_file(self.out), result_files(self.out, self.state.epoch)[1]
        return report.is_file() and report.stat().st_mtime_ns >= metrics.stat().st_mtime_ns

    def save_epoch(self) -> None:
        """Writes the checkpoint of the epoch just done; one of an interruption is outdated now."""
        path = epoch_file(self.out, self.state.epoch)
        self._save(path)
        self.files.append(path)
        (self.out / "weights" / INTERRUPTED).unlink(missing_ok=True)

    def save_and_stop(self) -> NoReturn:
        """Honours Ctrl-C: saves what is not saved yet, and says how to go on."""
        state = self.state
        if state.step:
            where = f"step {state.step} of {len(self.sampler)} in epoch {state.epoch + 1}"
            self._save(self.out / "weights" / INTERRUPTED)
        elif state.epoch:
            where = f"the end of epoch {state.epoch}"
        else:
            again = "; to start anew: --overwrite" if self.files else ""
            raise Interrupted(f"stopped before the first step; there was nothing to save{again}")
        raise Interrupted(f"stopped at {where}, saved as {self._how_to_go_on()}")

    @contextmanager
    def saving_on_failure(self, interrupt: Interrupt) -> Iterator[None]:
        """An error inside the block does not lose the steps before it."""
        try:
            yield
        except Interrupted:
            raise
        except Exception:
            # Whoever asks a process group to stop stops the readers as well, and they fail first.
            if interrupt.requested and self.between_steps:
                self.save_and_stop()
            self._save_after_failure()
            raise

    def _save_after_failure(self) -> None:
        if not self.state.step or not self.between_steps:
            return
        try:
            self._save(self.out / "weights" / INTERRUPTED)
        except OutputError as error:
            self.progress.warn(str(error))
        else:
            self.progress.warn(
                f"the {self.state.step} steps done of epoch {self.state.epoch + 1} are saved as "
                f"{self._how_to_go_on()}"
            )

    def result(self) -> TrainResult:
        """What the finished run came to."""
        if self.unreadable and self.files:  # a finished run that is resumed has nothing to add
            path = self.out / "results" / "unreadable.json"
            write_json(path, [asdict(one) for one in self.unreadable])
            self.files.append(path)
        return TrainResult(
            history=self.history,
            retrieval=self.retrieval,
            checkpoint=self.last_saved,
            files=self.files,
            unreadable=self.unreadable,
            encoder=self.encoder.eval(),
        )

    def _save(self, path: Path) -> None:
        self._replace_earlier_run()
        save_checkpoint(
            path, self.state, config=self.config, encoder=self.encoder, optimizer=self.optimizer,
            scaler=self.scaler, sampler=self.sampler, runtime=self.runtime,
            train_fingerprint=self.fingerprint,
            train_classes=sorted(self.encoder.trained_on.union(self.images.labels or ())),
            holdout=asdict(self.holdout) if self.holdout else None,
        )  # fmt: skip
        self.last_saved = path

    def _replace_earlier_run(self) -> None:
        """Makes room for a new run's files, now that there is something to write."""
        sweep_unfinished(self.out)
        while self._to_replace:
            self._to_replace.pop().unlink(missing_ok=True)

    def _how_to_go_on(self) -> str:
        path = os.fspath(self.last_saved or "")
        return f"{shown(path)}. Go on with: lookalike train --resume {shown(shlex.quote(path))}"

    def _introduce(self, resume: Path | None) -> None:
        """Says what is about to happen, before the first long wait."""
        config, report, how = self.config, self.sampler.report, self.encoder.preprocessing
        with self.runtime.autocast():
            dim = self.encoder.dim
        trained = sum(p.numel() for p in self.parameters)
        lines = [
            f"model    {config.model_name} · {self.encoder.kind} {dim}-d · "
            f"{how.width}x{how.height} px · {trained:,} parameters trained",
            f"train    {report.num_images:,} pictures, {report.num_classes:,} classes",
            f"test     {self.protocol.describe() if self.protocol else 'none'}",
            f"batches  {config.n_classes_per_batch} classes x {config.n_samples_per_class} "
            f"pictures = {self.batch_size}; {len(self.sampler):,} an epoch, "
            f"{config.num_epochs} epoch{'' if config.num_epochs == 1 else 's'}",
            f"device   {self.runtime.describe()}",
        ]
        for line in lines:
            self.progress.note(line)
        if resume:
            self.progress.note(
                f"resume   {shown(resume)}: epoch {self.state.epoch} done"
                + (f", then {self.state.step} steps" if self.state.step else "")
            )
        if resume and self.state.epoch >= config.num_epochs:
            self.progress.note(
                f"this run is finished; train on with --num-epochs {config.num_epochs + 1} or more"
            )
        if self.protocol is None:
            self.progress.warn(
                "no test pictures, so nothing is measured; give --test, or --query and --gallery"
            )
        self._warn_of_overlap()
        if report.excluded_singletons:
            self.progress.warn(
                f"{report.excluded_singletons:,} classes have a single picture and are left out; "
                "--singletons repeat takes them in"
            )
        if report.small_classes:
            self.progress.warn(
                f"{report.small_classes:,} classes have fewer than {config.n_samples_per_class} "
                f"pictures; {report.repeated_images:,} places are filled with repeats"
            )
        if self.unreadable:
            self.progress.warn(
                f"{len(self.unreadable):,} files cannot be read as pictures; listed at the end"
            )

    def _warn_of_overlap(self) -> None:
        """A test on what was learned proves nothing."""
        learned = {os.path.abspath(path) for path in self.images.paths}
        files = self.protocol.files if self.protocol else []
        both = sum(os.path.abspath(path) in learned for path in files)
        if both:
            self.progress.warn(
                f"{both:,} of the {len(files):,} test pictures are learned from as well, so the "
                "numbers will be too good; lookalike check finds copies, too"
            )

    def _tell_unreadable(self, batch: Batch) -> None:
        """Names pictures that turned out unreadable, each once."""
        for one in batch.unreadable:
            if one not in self.unreadable:
                self.progress.warn(
                    f"{shown(one.path)}: {one.reason}; another picture takes its place"
                )
                self.unreadable.append(one)
        labels = self.images.labels or []
        for label in sorted({labels[i] for i in batch.lost} - self._lost_classes):
            self._lost_classes.add(label)
            self.progress.warn(
                f"no picture of class {shown(label)} can be decoded; batches do without it"
            )
        if len(batch.indices) < 2:
            raise DataError(
                f"hardly a picture of step {self.state.step + 1} can be decoded: "
                f"{list_unreadable(batch.unreadable)}"
            )

    def _stop_non_finite(self, what: str, value: torch.Tensor, batch: Batch) -> NoReturn:
        names = ", ".join(shown(self.images.names[i]) for i in batch.indices)
        raise NonFiniteError(
            f"the {what} became {value.item()} in step {self.state.step + 1} of epoch "
            f"{self.state.epoch + 1}, with the batch: {names}. Lower --learning-rate, or try "
            "--precision fp32"
        )


def _listed_training_images(
    config: TrainConfig, holdout: Holdout | None, progress: Progress
) -> ImageSet:
    """The files to learn from, none of them opened yet."""
    if config.train is None:
        raise ConfigError("there is nothing to train on: name a folder or a table of pictures, "
                          "as in lookalike train photos/train")  # fmt: skip
    images = load_images(config.train, progress).of_split("train")
    if holdout is not None:
        images = images.of_classes(set(images.labels or ()) - set(holdout.classes))
    if images.labels is None:
        raise DataError(
            f"{shown(config.train)} has no labels to learn from; give one folder per class "
            "in it, or a table with a column 'label'"
        )
    return images
