"""Each epoch's evaluation: its result files, its report, and the run's history."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lookalike.config import TrainConfig
from lookalike.data.reading.cache import DecodeCache
from lookalike.data.reading.loader import ImageLoader
from lookalike.data.sources import Unreadable
from lookalike.errors import ConfigError, LookalikeError
from lookalike.evaluation.drift import (
    Drift,
    Originals,
    measure_drift,
    originals_of,
    read_originals,
    write_originals,
)
from lookalike.evaluation.protocol import Protocol
from lookalike.evaluation.results import (
    originals_file,
    report_file,
    result_files,
    write_results,
)
from lookalike.evaluation.retrieval import Retrieval, evaluate_encoder
from lookalike.evaluation.scoring.scores import METRICS, QueryScores
from lookalike.evaluation.text import (
    TEXT_METRICS,
    TextQueries,
    search_by_text,
    text_document,
    text_queries,
)
from lookalike.files import shown
from lookalike.model.encoder import CLIPEncoder
from lookalike.progress import Progress
from lookalike.report.epoch.write import write_report
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
        """Of text search by class name, where there is such."""
        metrics: dict[str, float] | None = self.text["text_metrics"]
        return metrics


class Evaluator:
    """Evaluates the epochs of a run, and remembers what they came to.

    `history` has a line for each epoch; `retrieval` is that of the last one evaluated here.

    Raises:
        ConfigError: the configuration asks for the best epoch in a way that nothing measured tells.
    """

    def __init__(
        self,
        config: TrainConfig,
        protocol: Protocol | None,
        encoder: CLIPEncoder,
        runtime: Runtime,
        progress: Progress,
        folder: RunFolder,
        cache: DecodeCache | None = None,
    ) -> None:
        _check_best_metric(config, protocol, encoder)
        self.protocol, self.history = protocol, list[EpochSummary]()
        self.retrieval: Retrieval | None = None
        self.files: list[Path] = []
        self._text_queries: TextQueries | None = None
        self._originals: Originals | None = None
        self.unreadable: list[Unreadable] = []
        self._config, self._encoder, self._runtime = config, encoder, runtime
        self._progress, self._folder = progress, folder
        self._loader: ImageLoader | None = None
        if protocol is not None:
            self._loader = ImageLoader(
                protocol.files,
                replace(encoder.preprocessing, exact=config.exact_pixels),
                runtime,
                max_megapixels=config.max_megapixels,
                cache=cache,
            )

    def resume(self, state: TrainingState) -> None:
        """Reads what the run measured before it was stopped."""
        out, protocol = self._folder.path, self.protocol
        self.history = self._runtime.world.on_main(
            lambda: earlier_epochs(out, state.run, state.epoch, protocol)
        )
        if protocol is None:
            return
        path = originals_file(out)
        self._originals = read_originals(path, state.run, protocol.facts()["fingerprint"])
        if self._originals is None:
            self._progress.warn(
                f"the drift from the baseline cannot be told: {shown(path)} is not there, or "
                "not of this run and test"
            )

    def measure(self, state: TrainingState) -> None:
        """Measures the encoder as it is now, and writes the epoch's files.

        Several processes measure together; the first one writes.
        """
        world = self._runtime.world
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
        retrieval = evaluate_encoder(
            self._encoder,
            protocol,
            loader,
            self._runtime,
            top_k_wanted=self._config.top_k,
            batch_size=self._config.eval_batch_size,
            progress=self._progress,
            title=title,
        )
        return Measured(retrieval, text_document(self._search_by_text(retrieval, protocol)))

    def _write(self, state: TrainingState, measured: Measured) -> tuple[EpochSummary, list[Path]]:
        """Writes what was measured of an epoch."""
        assert self.protocol is not None, "it was measured by one"
        self._folder.make_room()
        files = self._keep_originals(state, measured.retrieval)
        out, about = self._folder.path, self.about(state, measured)
        files += write_results(out, state.epoch, measured.retrieval, self.protocol, about=about)
        if self._config.report:
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
            "config": asdict(self._config),
            "drift": asdict(drift) if drift else None,
        }

    def _drift_of(self, measured: Measured) -> Drift | None:
        return measure_drift(self._originals, measured.retrieval) if self._originals else None

    @property
    def best(self) -> Best | None:
        """The best epoch so far, by the metric that the configuration names."""
        best = best_epoch(self.history, self._config.best_metric)
        if best is None:
            return None
        path = self._folder.epoch_file(best.epoch)
        return replace(best, checkpoint=path if path.is_file() else None)

    @property
    def is_out_of_patience(self) -> bool:
        """True once `patience` epochs in a row were not better than the best before them."""
        patience, best = self._config.patience, self.best
        if patience is None or best is None:
            return False
        return self.history[-1].epoch - best.epoch >= patience

    def _search_by_text(self, retrieval: Retrieval, protocol: Protocol) -> QueryScores | None:
        """Searches by class name, where there are texts and names to search with."""
        labels = protocol.gallery.labels
        if labels is None or not self._encoder.has_text:
            return None
        if self._text_queries is None:  # the text tower is frozen, so once is enough
            template = self._config.caption_template
            self._text_queries = text_queries(self._encoder, labels, template, self._progress)
        queries = self._text_queries
        return self._runtime.world.on_main(
            lambda: search_by_text(queries, retrieval.gallery, retrieval.gallery_embeddings)
        )

    def _keep_originals(self, state: TrainingState, retrieval: Retrieval) -> list[Path]:
        """Keeps the embeddings of epoch 0, the baseline, as a file, to measure drift from."""
        if state.epoch > 0 or self.protocol is None:
            return []
        fingerprint = self.protocol.facts()["fingerprint"]
        self._originals = originals_of(retrieval, state.run, fingerprint)
        path = originals_file(self._folder.path)
        write_originals(path, self._originals)
        return [path]

    def report(self, epoch: int, retrieval: Retrieval) -> list[Path]:
        """Writes the page to look at. Where that fails the run goes on: its results are safe."""
        out = self._folder.path
        assert self.protocol is not None, "it was measured by one"
        try:
            path = write_report(out, epoch, retrieval, self.protocol, progress=self._progress)
        except LookalikeError as error:
            self._progress.warn(f"no report of epoch {epoch}: {error}")
        # Whatever else a page can fail of, such as a plot library: training must not end with it.
        except Exception as error:
            self._progress.warn(f"no report of epoch {epoch}: {type(error).__name__}: {error}")
        else:
            return [path]
        return []

    def _is_reported(self, epoch: int) -> bool:
        """Returns true where the report, if there is to be one, is of the newest metrics."""
        if not self._config.report or self.protocol is None:
            return True
        out = self._folder.path
        report, metrics = report_file(out), result_files(out, epoch)[1]
        return report.is_file() and report.stat().st_mtime_ns >= metrics.stat().st_mtime_ns


def _measured(protocol: Protocol, encoder: CLIPEncoder) -> tuple[str, ...]:
    """Returns the metrics that every epoch will have."""
    texts = TEXT_METRICS if protocol.gallery.labels is not None and encoder.has_text else ()
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
    if config.best_metric in TEXT_METRICS:
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
