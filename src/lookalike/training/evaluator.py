"""Each epoch's evaluation: its result files, its report, and the run's history."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lookalike.config import TrainConfig
from lookalike.data.images import Unreadable
from lookalike.data.reading.cache import DecodeCache
from lookalike.data.reading.loader import ImageLoader
from lookalike.embedding.embedder import Embedder
from lookalike.errors import ConfigError, LookalikeError
from lookalike.evaluation.drift import (
    Drift,
    Originals,
    measure_drift,
    originals_of,
    read_originals,
    write_originals,
)
from lookalike.evaluation.metrics import METRICS
from lookalike.evaluation.protocol import Protocol
from lookalike.evaluation.results import (
    originals_file,
    report_file,
    result_files,
    write_results,
)
from lookalike.evaluation.retrieval import Retrieval, evaluate_encoder
from lookalike.evaluation.scoring.scores import QueryScores
from lookalike.evaluation.text import (
    TextQueries,
    search_by_text,
    text_document,
    text_metric_names,
    text_queries,
)
from lookalike.files import shown
from lookalike.model.encoder import CLIPEncoder
from lookalike.progress import Progress
from lookalike.report.write import write_report
from lookalike.runtime.device import Runtime
from lookalike.training.checkpoints.folder import RunFolder
from lookalike.training.history import (
    Best,
    EpochSummary,
    TrainingState,
    best_epoch,
    earlier_epochs,
)


@dataclass(frozen=True)
class Measured:
    """What one evaluation came to; `text` is what its metrics file says of text search."""

    retrieval: Retrieval
    text: dict[str, Any]

    @property
    def text_metrics(self) -> dict[str, float] | None:
        """The metrics of text search by class name, where there is such."""
        metrics: dict[str, float] | None = self.text["text_metrics"]
        return metrics


@dataclass(eq=False)
class Evaluator:
    """Evaluates the epochs of a run, and remembers what they came to.

    `history` has a line for each epoch; `retrieval` is that of the last one evaluated here.

    Raises:
        ConfigError: the configuration asks for the best epoch in a way that nothing measured tells.
    """

    config: TrainConfig
    protocol: Protocol | None
    encoder: CLIPEncoder
    runtime: Runtime
    progress: Progress
    folder: RunFolder
    cache: DecodeCache | None = None

    def __post_init__(self) -> None:
        _check_best_metric(self.config, self.protocol, self.encoder)
        self.history = list[EpochSummary]()
        self.retrieval: Retrieval | None = None
        self.files: list[Path] = []
        self.unreadable: list[Unreadable] = []
        self._text_queries: TextQueries | None = None
        self._originals: Originals | None = None
        self._loader: ImageLoader | None = None
        if self.protocol is not None:
            self._loader = ImageLoader(
                self.protocol.files,
                replace(self.encoder.preprocessing, exact=self.config.exact_pixels),
                self.runtime,
                max_megapixels=self.config.max_megapixels,
                cache=self.cache,
            )

    def resume(self, state: TrainingState) -> None:
        """Reads what the run measured before it was stopped."""
        out, protocol = self.folder.path, self.protocol
        self.history = self.runtime.world.on_main(
            lambda: earlier_epochs(out, state.run, state.epoch, protocol)
        )
        if protocol is None:
            return
        path = originals_file(out)
        self._originals = read_originals(path, state.run, protocol.facts()["fingerprint"])
        if self._originals is None:
            self.progress.warn(
                f"the drift from the baseline cannot be told: {shown(path)} is not there, or "
                "not of this run and test"
            )

    def measure(self, state: TrainingState) -> None:
        """Measures the encoder as it is now, and writes the epoch's files.

        Several processes measure together; the first one writes.
        """
        world = self.runtime.world
        if self.history and self.history[-1].epoch == state.epoch:
            if world.on_main(lambda: self._is_reported(state.epoch)):
                return  # a resumed run that was measured here before it stopped
            self.history.pop()
        if self.protocol is None or self._loader is None:
            self.history.append(EpochSummary(state.epoch, state.loss, None))
            return
        measured = self.evaluate(f"evaluating epoch {state.epoch}")
        summary, written = world.on_main(lambda: self._write(state, measured))
        self.files = [file for file in self.files if file not in written] + written
        self.retrieval, self.unreadable = measured.retrieval, measured.retrieval.unreadable
        self.history.append(summary)

    def evaluate(self, title: str) -> Measured:
        """Measures the encoder as it is now, and writes nothing."""
        protocol, loader = self.protocol, self._loader
        assert protocol is not None, "there is nothing to measure on"
        assert loader is not None, "made with the protocol"
        embedder = Embedder(  # of the weights as they are now
            self.encoder,
            runtime=self.runtime,
            batch_size=self.config.eval_batch_size,
            progress=self.progress,
        )
        retrieval = evaluate_encoder(
            embedder,
            protocol,
            loader,
            top_k_wanted=self.config.top_k,
            progress=self.progress,
            title=title,
        )
        return Measured(retrieval, text_document(self._search_by_text(retrieval, protocol)))

    def _write(self, state: TrainingState, measured: Measured) -> tuple[EpochSummary, list[Path]]:
        """Writes what was measured of an epoch."""
        assert self.protocol is not None, "it was measured by one"
        self.folder.make_room()
        files = self._keep_originals(state, measured.retrieval)
        out, about = self.folder.path, self.about(state, measured)
        files += write_results(out, state.epoch, measured.retrieval, self.protocol, about=about)
        if self.config.report:
            files += self.report(state.epoch, measured.retrieval)
        summary = EpochSummary(
            state.epoch,
            state.loss,
            measured.retrieval.metrics,
            measured.text_metrics,
            self._drift_of(measured),
        )
        return summary, files

    def about(self, state: TrainingState, measured: Measured) -> dict[str, Any]:
        """Returns what a metrics file says beside the metrics of image search."""
        drift = self._drift_of(measured)
        return measured.text | {
            "run": state.run,
            "loss": state.loss,
            "config": asdict(self.config),
            "drift": asdict(drift) if drift else None,
        }

    def _drift_of(self, measured: Measured) -> Drift | None:
        return measure_drift(self._originals, measured.retrieval) if self._originals else None

    @property
    def best(self) -> Best | None:
        """The best epoch so far, by the metric that the configuration names."""
        best = best_epoch(self.history, self.config.best_metric)
        if best is None:
            return None
        path = self.folder.epoch_file(best.epoch)
        return replace(best, checkpoint=path if path.is_file() else None)

    @property
    def is_out_of_patience(self) -> bool:
        """True once `patience` epochs in a row were not better than the best before them."""
        patience, best = self.config.patience, self.best
        if patience is None or best is None:
            return False
        return self.history[-1].epoch - best.epoch >= patience

    def _search_by_text(self, retrieval: Retrieval, protocol: Protocol) -> QueryScores | None:
        """Searches by class name, where there are texts and names to search with."""
        labels = protocol.gallery.labels
        if labels is None or not self.encoder.has_text:
            return None
        if self._text_queries is None:  # the text tower is frozen, so once is enough
            template = self.config.caption_template
            self._text_queries = text_queries(self.encoder, labels, template, self.progress)
        queries = self._text_queries
        return self.runtime.world.on_main(
            lambda: search_by_text(queries, retrieval.gallery, retrieval.gallery_embeddings)
        )

    def _keep_originals(self, state: TrainingState, retrieval: Retrieval) -> list[Path]:
        """Keeps the embeddings of epoch 0, the baseline, as a file, to measure drift from."""
        if state.epoch > 0 or self.protocol is None:
            return []
        fingerprint = self.protocol.facts()["fingerprint"]
        self._originals = originals_of(retrieval, state.run, fingerprint)
        path = originals_file(self.folder.path)
        write_originals(path, self._originals)
        return [path]

    def report(self, epoch: int, retrieval: Retrieval) -> list[Path]:
        """Writes the page to look at. Where that fails the run goes on: its results are safe."""
        out = self.folder.path
        assert self.protocol is not None, "it was measured by one"
        try:
            path = write_report(out, epoch, retrieval, self.protocol, progress=self.progress)
        except LookalikeError as error:
            self.progress.warn(f"no report of epoch {epoch}: {error}")
        # Whatever else a page can fail of, such as a plot library: training must not end with it.
        except Exception as error:
            self.progress.warn(f"no report of epoch {epoch}: {type(error).__name__}: {error}")
        else:
            return [path]
        return []

    def _is_reported(self, epoch: int) -> bool:
        """Returns true where the report, if there is to be one, is of the newest metrics."""
        if not self.config.report or self.protocol is None:
            return True
        out = self.folder.path
        report, metrics = report_file(out), result_files(out, epoch)[1]
        return report.is_file() and report.stat().st_mtime_ns >= metrics.stat().st_mtime_ns


def _measured(protocol: Protocol, encoder: CLIPEncoder) -> tuple[str, ...]:
    """Returns the metrics that every epoch will have."""
    texts = text_metric_names() if protocol.gallery.labels is not None and encoder.has_text else ()
    return (*(METRICS if protocol.labelled else ()), *texts)


def _check_best_metric(
    config: TrainConfig, protocol: Protocol | None, encoder: CLIPEncoder
) -> None:
    """Refuses, before anything is trained, what asks for a best model that nothing would tell."""
    labelled = protocol is not None and protocol.labelled
    measured = _measured(protocol, encoder) if protocol is not None else ()
    tells = config.best_metric in measured
    if config.patience and not tells and not labelled:
        raise ConfigError(no_measure("patience", config.patience))
    if tells or not labelled:
        return
    why = "which is not measured"
    if config.best_metric in text_metric_names():
        why = f"and {encoder.why_no_text}"
    raise ConfigError(
        f"best_metric is {config.best_metric!r}, {why}; there are {', '.join(measured)}"
    )


def no_measure(option: str, value: int) -> str:
    """Returns the refusal of an option that needs to know which model is better."""
    return (
        f"{option} is {value}, and without test images with labels no model is known to be "
        f"better than another; give --test, or leave {option} out"
    )
