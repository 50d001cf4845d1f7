"""Each epoch's measurement: its result files, its report, and the run's history."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lookalike.config import TrainConfig
from lookalike.data.loader import ImageLoader
from lookalike.data.sources import Unreadable
from lookalike.errors import ConfigError, LookalikeError
from lookalike.evaluation.drift import (
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
from lookalike.evaluation.scores import METRICS, QueryScores
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
from lookalike.runtime import Runtime
from lookalike.training.outcome import Best, EpochSummary, best_epoch, earlier_epochs
from lookalike.training.saving.checkpoint import TrainingState
from lookalike.training.saving.folder import RunFolder


class Measurements:
    """The measured epochs of a run, and the means to measure the next.

    `history` has a line for each epoch; `retrieval` is that of the last one measured.

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
                protocol.files, encoder.preprocessing, runtime, max_megapixels=config.max_megapixels
            )

    def take_up(self, state: TrainingState) -> None:
        """Knows again what a run measured before it was stopped."""
        out, protocol = self._folder.path, self.protocol
        self.history = self._runtime.processes.by_first(
            lambda: earlier_epochs(out, state.run, state.epoch, protocol)
        )
        if protocol is None:
            return
        path = originals_file(out)
        self._originals = read_originals(path, state.run, protocol.facts()["fingerprint"])
        if self._originals is None:
            self._progress.warn(
                f"the drift from the original model cannot be told: {shown(path)} is not there, or "
                "not of this run and test"
            )

    def measure(self, state: TrainingState) -> None:
        """Measures the model as it is now, and writes the epoch's files.

        Several processes measure together; the first one writes.
        """
        processes = self._runtime.processes
        if self.history and self.history[-1].epoch == state.epoch:
            if processes.by_first(lambda: self._is_reported(state.epoch)):
                return  # a resumed run that was measured here before it stopped
            self.history.pop()
        if self.protocol is None or self._loader is None:
            self.history.append(EpochSummary(state.epoch, state.loss, None))
            return
        retrieval = evaluate_encoder(
            self._encoder,
            self.protocol,
            self._loader,
            self._runtime,
            top_k_wanted=self._config.top_k,
            batch_size=self._config.eval_batch_size,
            progress=self._progress,
            title=f"evaluating epoch {state.epoch}",
        )
        protocol = self.protocol
        text_scores = self._search_by_text(retrieval, protocol)
        summary, written = processes.by_first(
            lambda: self._write(state, retrieval, protocol, text_document(text_scores))
        )
        self.files = [file for file in self.files if file not in written] + written
        self.retrieval, self.unreadable = retrieval, retrieval.unreadable
        self.history.append(summary)

    def _write(
        self, state: TrainingState, retrieval: Retrieval, protocol: Protocol, text: dict[str, Any]
    ) -> tuple[EpochSummary, list[Path]]:
        """Writes what was measured."""
        out = self._folder.path
        self._folder.make_room()
        files = self._keep_originals(state, retrieval, protocol)
        drift = measure_drift(self._originals, retrieval) if self._originals else None
        about = text | {
            "run": state.run,
            "loss": state.loss,
            "config": asdict(self._config),
            "drift": asdict(drift) if drift else None,
        }
        files += write_results(out, state.epoch, retrieval, protocol, about=about)
        if self._config.report:
            files += self._report(state.epoch, retrieval, protocol)
        summary = EpochSummary(
            state.epoch, state.loss, retrieval.metrics, text["text_metrics"], drift
        )
        return summary, files

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
        """Whether as many epochs as that in a row were not better than the best before them."""
        patience, best = self._config.patience, self.best
        if patience is None or best is None:
            return False
        return self.history[-1].epoch - best.epoch >= patience

    def _search_by_text(self, retrieval: Retrieval, protocol: Protocol) -> QueryScores | None:
        """Text search by class name, where there are texts and names to search with."""
        labels = protocol.gallery.labels
        if labels is None or not self._encoder.has_text:
            return None
        if self._text_queries is None:  # the text tower is frozen, so once is enough
            template = self._config.caption_template
            self._text_queries = text_queries(self._encoder, labels, template, self._progress)
        return search_by_text(self._text_queries, retrieval.gallery, retrieval.gallery_embeddings)

    def _keep_originals(
        self, state: TrainingState, retrieval: Retrieval, protocol: Protocol
    ) -> list[Path]:
        """Epoch 0, the model as it came, keeps its embeddings as a file, to measure drift from."""
        if state.epoch > 0:
            return []
        self._originals = originals_of(retrieval, state.run, protocol.facts()["fingerprint"])
        path = originals_file(self._folder.path)
        write_originals(path, self._originals)
        return [path]

    def _report(self, epoch: int, retrieval: Retrieval, protocol: Protocol) -> list[Path]:
        """Writes the page to look at. Where that fails the run goes on: its results are safe."""
        out = self._folder.path
        try:
            path = write_report(out, epoch, retrieval, protocol, progress=self._progress)
        except LookalikeError as error:
            self._progress.warn(f"no report of epoch {epoch}: {error}")
        # Whatever else a page can fail of, such as a plot library: training must not end with it.
        except Exception as error:
            self._progress.warn(f"no report of epoch {epoch}: {type(error).__name__}: {error}")
        else:
            return [path]
        return []

    def _is_reported(self, epoch: int) -> bool:
        """Whether the report is that of the newest metrics, where there is to be one."""
        if not self._config.report or self.protocol is None:
            return True
        out = self._folder.path
        report, metrics = report_file(out), result_files(out, epoch)[1]
        return report.is_file() and report.stat().st_mtime_ns >= metrics.stat().st_mtime_ns


def _measured(protocol: Protocol, encoder: CLIPEncoder) -> tuple[str, ...]:
    """The metrics that every epoch will have."""
    texts = TEXT_METRICS if protocol.gallery.labels is not None and encoder.has_text else ()
    return (*(METRICS if protocol.labelled else ()), *texts)


def _check_best_metric(
    config: TrainConfig, protocol: Protocol | None, encoder: CLIPEncoder
) -> None:
    """Refuses, before anything is trained, what asks for a best epoch that nothing would tell."""
    measured = _measured(protocol, encoder) if protocol is not None else ()
    if config.best_metric in measured:
        return
    if protocol is None or not protocol.labelled:
        if config.patience is not None:
            raise ConfigError(
                f"patience is {config.patience}, and without test pictures with labels no epoch is "
                "known to be better than another; give --test, or leave patience out"
            )
        return
    why = "which is not measured"
    if config.best_metric in TEXT_METRICS:
        why = f"and {encoder.why_no_text}"
    raise ConfigError(
        f"best_metric is {config.best_metric!r}, {why}; there are {', '.join(measured)}"
    )
