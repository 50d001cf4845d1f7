"""Everything one training run holds, and the things it can do; `trainer.py` says in which order."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import torch

from lookalike.config import TrainConfig
from lookalike.data.loader import Batch, ImageLoader, Request
from lookalike.data.sampler import BalancedBatchSampler
from lookalike.data.sources import ImageSet, Unreadable, keep_readable, load_images
from lookalike.data.transforms import Augmentation
from lookalike.errors import ConfigError, DataError, Interrupted, NonFiniteError, OutputError
from lookalike.evaluation.protocol import Protocol, Retrieval, evaluate_encoder, load_protocol
from lookalike.evaluation.results import result_files, write_results
from lookalike.files import shown, writable_folder
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.pretrained import read_checkpoint
from lookalike.progress import Progress
from lookalike.runtime import make_runtime
from lookalike.training.checkpoint import (
    INTERRUPTED,
    TrainingState,
    check_same_run,
    epoch_file,
    find_checkpoints,
    restore_checkpoint,
    save_checkpoint,
)
from lookalike.training.loss import SupConLoss
from lookalike.training.optimizer import learning_rate_at, make_optimizer


@dataclass(frozen=True)
class EpochSummary:
    """One line of the closing table; epoch 0 is the model as it came."""

    epoch: int
    loss: float | None
    metrics: dict[str, float] | None


@dataclass(frozen=True)
class TrainResult:
    """What a run came to. `retrieval` is that of the last evaluation, if there was one."""

    history: list[EpochSummary]
    retrieval: Retrieval | None
    checkpoint: Path | None
    files: list[Path]
    unreadable: list[Unreadable]
    encoder: CLIPEncoder


class Run:
    """One training run: made of a configuration, or of one and a checkpoint to go on from."""

    def __init__(self, config: TrainConfig, resume: Path | None, progress: Progress) -> None:
        self.config, self.progress = config, progress
        self.out = writable_folder(Path(config.out))
        saved = read_checkpoint(resume) if resume else None
        if saved is None:
            _refuse_to_overwrite(config, self.out)
        self.runtime = make_runtime(config.device, config.precision, config.num_workers)

        self.images, self.unreadable = _training_images(config, progress)
        self.sampler = BalancedBatchSampler(
            self.images.labels or [],
            config.n_classes_per_batch,
            config.n_samples_per_class,
            singletons=config.singletons,
            seed=config.seed,
        )
        self.protocol = load_protocol(config, progress)
        self.fingerprint = self.images.fingerprint()
        if saved is not None and resume is not None:
            check_same_run(saved, resume, config, self.fingerprint)

        # A resumed run's architecture and files come from its checkpoint: the model it started
        # from may be out of reach by now.
        self.encoder = CLIPEncoder(
            str(resume) if resume else config.model_name,
            embedding=config.embedding,
            gradient_checkpointing=config.gradient_checkpointing,
        ).to(self.runtime.device)
        self.encoder.train()
        self.parameters = [p for _, p in self.encoder.trainable_parameters()]
        self.loss = SupConLoss(config.temperature)
        self.optimizer = make_optimizer(
            self.encoder.trainable_parameters(),
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self.scaler = self.runtime.grad_scaler()
        if saved is not None and resume is not None:
            self.state = restore_checkpoint(
                saved, resume, encoder=self.encoder, optimizer=self.optimizer,
                scaler=self.scaler, sampler=self.sampler,
            )  # fmt: skip
        else:
            self.state = TrainingState(run=secrets.token_hex(8))

        self.loader = ImageLoader(
            self.images.paths,
            self.encoder.preprocessing,
            self.runtime,
            max_megapixels=config.max_megapixels,
            augmentation=Augmentation(config.augmentation, config.min_crop_area),
            labels=self.images.labels,
        )
        self.eval_loader: ImageLoader | None = None
        if self.protocol is not None:
            self.eval_loader = ImageLoader(
                self.protocol.files,
                self.encoder.preprocessing,
                self.runtime,
                max_megapixels=config.max_megapixels,
            )
        numbers = {label: i for i, label in enumerate(sorted(set(self.images.labels or ())))}
        self.labels = torch.tensor([numbers[label] for label in self.images.labels or ()])
        self.batch_size = config.n_classes_per_batch * config.n_samples_per_class
        self.images_per_epoch = len(self.sampler) * self.batch_size
        self.history: list[EpochSummary] = []
        self.retrieval: Retrieval | None = None
        self.files: list[Path] = []
        self._introduce(resume)
        if resume:
            self.history = _earlier_epochs(self.out, self.state, self.protocol)

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
        self._tell_unreadable(batch.unreadable)
        learning_rate = learning_rate_at(
            self.state.epoch * len(self.sampler) + self.state.step,
            peak=config.learning_rate,
            schedule=config.schedule,
            warmup_steps=config.warmup_steps,
            total_steps=config.num_epochs * len(self.sampler),
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

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
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item(), learning_rate

    def evaluate(self) -> None:
        """Measures the model as it is now, and writes the epoch's result files."""
        epoch, loss = self.state.epoch, self.state.loss
        if self.history and self.history[-1].epoch == epoch:
            return  # a resumed run that was measured here before it stopped
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
        about = {"run": self.state.run, "loss": loss, "config": asdict(self.config)}
        self.files += write_results(self.out, epoch, retrieval, self.protocol, about=about)
        self.retrieval = retrieval
        self.unreadable = list(dict.fromkeys(self.unreadable + retrieval.unreadable))
        self.history.append(EpochSummary(epoch, loss, retrieval.metrics))

    def save_epoch(self) -> None:
        """Writes the checkpoint of the epoch just done; one of an interruption is outdated now."""
        path = epoch_file(self.out, self.state.epoch)
        self._save(path)
        self.files.append(path)
        (self.out / "weights" / INTERRUPTED).unlink(missing_ok=True)

    def save_and_stop(self) -> NoReturn:
        """Honours Ctrl-C: saves what is not saved yet, and says how to go on."""
        state = self.state
        if state.epoch == 0 and state.step == 0:
            raise Interrupted("stopped before the first step; there was nothing to save")
        path = epoch_file(self.out, state.epoch)
        if state.step:
            path = self.out / "weights" / INTERRUPTED
            self._save(path)
        where = f"step {state.step} of {len(self.sampler)} in epoch {state.epoch + 1}"
        raise Interrupted(
            f"stopped at {where if state.step else f'the end of epoch {state.epoch}'}, saved as "
            f"{shown(path)}. Go on with: lookalike train --resume {shown(path)}"
        )

    def result(self) -> TrainResult:
        """What the finished run came to."""
        checkpoint = epoch_file(self.out, self.state.epoch)
        return TrainResult(
            history=self.history,
            retrieval=self.retrieval,
            checkpoint=checkpoint if checkpoint.is_file() else None,
            files=self.files,
            unreadable=self.unreadable,
            encoder=self.encoder,
        )

    def _save(self, path: Path) -> None:
        save_checkpoint(
            path, self.state, config=self.config, encoder=self.encoder, optimizer=self.optimizer,
            scaler=self.scaler, sampler=self.sampler, train_fingerprint=self.fingerprint,
        )  # fmt: skip

    def _introduce(self, resume: Path | None) -> None:
        """Says what is about to happen, before the first long wait."""
        config, report, how = self.config, self.sampler.report, self.encoder.preprocessing
        with self.runtime.autocast():
            dim = self.encoder.dim
        trained = sum(p.numel() for p in self.parameters) / 1e6
        lines = [
            f"model    {config.model_name} · {self.encoder.kind} {dim}-d · "
            f"{how.width}x{how.height} px · {trained:.1f}M parameters trained",
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
        if self.protocol is None:
            self.progress.warn(
                "no test pictures, so nothing is measured; give --test, or --query and --gallery"
            )
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

    def _tell_unreadable(self, unreadable: list[Unreadable]) -> None:
        known = set(self.unreadable)
        for one in unreadable:
            if one not in known:
                self.progress.warn(
                    f"{shown(one.path)}: {one.reason}; another picture takes its place"
                )
                self.unreadable.append(one)

    def _stop_non_finite(self, what: str, value: torch.Tensor, batch: Batch) -> NoReturn:
        names = ", ".join(shown(self.images.names[i]) for i in batch.indices)
        saved = find_checkpoints(self.out)
        last = f"The last good checkpoint is {shown(saved[-1])}" if saved else "Nothing was saved"
        raise NonFiniteError(
            f"the {what} became {value.item()} in step {self.state.step + 1} of epoch "
            f"{self.state.epoch + 1}, with the batch: {names}. {last}. Lower --learning-rate, or "
            "try --precision fp32"
        )


def _training_images(config: TrainConfig, progress: Progress) -> tuple[ImageSet, list[Unreadable]]:
    """The pictures to learn from, and the files beside them that are none."""
    if config.train is None:
        raise ConfigError("there is nothing to train on: name a folder or a table of pictures, "
                          "as in lookalike train photos/train")  # fmt: skip
    images = load_images(config.train, progress).of_split("train")
    if not len(images):
        raise DataError(f"{shown(config.train)} has no rows of split 'train'")
    if images.labels is None:
        raise DataError(
            f"{shown(config.train)} has no labels to learn from; give one folder per class "
            "in it, or a table with a column 'label'"
        )
    return keep_readable(images, config.max_megapixels, progress)


def _refuse_to_overwrite(config: TrainConfig, out: Path) -> None:
    """A new run never replaces an earlier one unless told to."""
    earlier = find_checkpoints(out)
    if not earlier:
        return
    if not config.overwrite:
        raise OutputError(
            f"{shown(out)} already holds a run ({shown(earlier[-1])}). Go on with it: --resume; "
            "start another: --out FOLDER; or replace it: --overwrite"
        )
    for path in [*earlier, *(out / "results").glob("*_epoch_*.json")]:
        path.unlink()


def _earlier_epochs(
    out: Path, state: TrainingState, protocol: Protocol | None
) -> list[EpochSummary]:
    """The epochs this run measured before it was stopped, from its own result files."""
    summaries = []
    for epoch in range(state.epoch + 1):
        path = result_files(out, epoch)[1]
        if protocol is None or not path.is_file():
            continue
        document = json.loads(path.read_text(encoding="utf-8"))
        same_test = all(document["protocol"].get(k) == v for k, v in protocol.facts().items())
        if document.get("run") == state.run and same_test:
            summaries.append(EpochSummary(epoch, document["loss"], document["metrics"]))
    return summaries
