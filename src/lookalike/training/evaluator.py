"""Each epoch's measurement: its result files, its report, and the run's history."""

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
from lookalike.evaluation.interpolation import TradeOff, write_trade_off
from lookalike.evaluation.metrics import METRICS
from lookalike.evaluation.protocol import Protocol
from lookalike.evaluation.results import (
    interpolation_file,
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
from lookalike.training.checkpoints.checkpoint import TrainingState
from lookalike.training.checkpoints.folder import RunFolder
from lookalike.training.history import Best, EpochSummary, best_epoch, earlier_epochs


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

    def take_up(self, state: TrainingState) -> None:
        """Knows again what a run measured before it was stopped."""
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
                f"the drift from the original model cannot be told: {shown(path)} is not there, or "
                "not of this run and test"
            )

    def measure(self, state: TrainingState) -> None:
        """Measures the model as it is now, and writes the epoch's files.

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
        self._count_in(measured.retrieval, written)
        self.history.append(summary)

    def measure_mixture(self, state: TrainingState, trade_off: TradeOff, end: Retrieval) -> None:
        """Measures the mixture of weights that was chosen, and writes its files and what all
        mixtures came to; and anew the report of the last epoch, whose retrieval is `end`.
        """
        measured = self.evaluate(f"evaluating the chosen mixture, alpha {trade_off.chosen.alpha:g}")
        written = self._runtime.world.on_main(
            lambda: self._write_mixture(state, measured, trade_off, end)
        )
        self._count_in(measured.retrieval, written)

    def evaluate(self, title: str) -> Measured:
        """Measures the encoder as it is now, and writes nothing."""
        protocol, loader = self.protocol, self._loader
        assert protocol is not None, "there is nothing to measure on"
        assert loader is not None, "made with the protocol"
        embedder = Embedder(  # of the weights as they are now
            self._encoder,
            runtime=self._runtime,
            batch_size=self._config.eval_batch_size,
            progress=self._progress,
        )
        retrieval = evaluate_encoder(
            embedder,
            protocol,
            loader,
            top_k_wanted=self._config.top_k,
            progress=self._progress,
            title=title,
        )
        return Measured(retrieval, text_document(self._search_by_text(retrieval, protocol)))

    def _count_in(self, retrieval: Retrieval, written: list[Path]) -> None:
        self.files = [file for file in self.files if file not in written] + written
        self.retrieval, self.unreadable = retrieval, retrieval.unreadable

    def _write(self, state: TrainingState, measured: Measured) -> tuple[EpochSummary, list[Path]]:
        """Writes what was measured of an epoch."""
        self._folder.make_room()
        files = self._keep_originals(state, measured.retrieval)
        files += self._write_results(state, measured)
        if self._config.report:
            files += self._report(state.epoch, measured.retrieval)
        summary = EpochSummary(
            state.epoch,
            state.loss,
            measured.retrieval.metrics,
            measured.text_metrics,
            self._drift_of(measured),
        )
        return summary, files

    def _write_mixture(
        self, state: TrainingState, measured: Measured, trade_off: TradeOff, end: Retrieval
    ) -> list[Path]:
        files = self._write_results(state, measured, alpha=trade_off.chosen.alpha)
        path = interpolation_file(self._folder.path)
        write_trade_off(path, trade_off)
        files.append(path)
        if self._config.report:
            files += self._report(state.epoch, end)
        return files

    def _write_results(
        self, state: TrainingState, measured: Measured, *, alpha: float | None = None
    ) -> list[Path]:
        """The two files of an epoch, or of a mixture of its weights with the original's."""
        assert self.protocol is not None, "it was measured by one"
        drift = self._drift_of(measured)
        about = measured.text | {
            "run": state.run,
            "loss": state.loss,
            "config": asdict(self._config),
            "drift": asdict(drift) if drift else None,
        }
        if alpha is not None:
            about["alpha"] = alpha
        return list(
            write_results(
                self._folder.path,
                state.epoch,
                measured.retrieval,
                self.protocol,
                about=about,
                of_mixture=alpha is not None,
            )
        )

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
        queries = self._text_queries
        return self._runtime.world.on_main(
            lambda: search_by_text(queries, retrieval.gallery, retrieval.gallery_embeddings)
        )

    def _keep_originals(self, state: TrainingState, retrieval: Retrieval) -> list[Path]:
        """Epoch 0, the model as it came, keeps its embeddings as a file, to measure drift from."""
        if state.epoch > 0 or self.protocol is None:
            return []
        fingerprint = self.protocol.facts()["fingerprint"]
        self._originals = originals_of(retrieval, state.run, fingerprint)
        path = originals_file(self._folder.path)
        write_originals(path, self._originals)
        return [path]

    def _report(self, epoch: int, retrieval: Retrieval) -> list[Path]:
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
        """Whether the report is that of the newest metrics, where there is to be one."""
        if not self._config.report or self.protocol is None:
            return True
        out = self._folder.path
        report, metrics = report_file(out), result_files(out, epoch)[1]
        return report.is_file() and report.stat().st_mtime_ns >= metrics.stat().st_mtime_ns


def _measured(protocol: Protocol, encoder: CLIPEncoder) -> tuple[str, ...]:
    """The metrics that every epoch will have."""
    texts = text_metric_names() if protocol.gallery.labels is not None and encoder.has_text else ()
    return (*(METRICS if protocol.labelled else ()), *texts)


def _check_best_metric(
    config: TrainConfig, protocol: Protocol | None, encoder: CLIPEncoder
) -> None:
    """Refuses, before anything is trained, what asks for a best model that nothing would tell."""
    labelled = protocol is not None and protocol.labelled
    measured = _measured(protocol, encoder) if protocol is not None else ()
    tells = config.best_metric in measured
    needs = {"patience": None if tells else config.patience, "interpolation": config.interpolation}
    for name, value in needs.items():
        if value and not labelled:
            raise ConfigError(
                f"{name} is {value}, and without test images with labels no model is known to be "
                f"better than another; give --test, or leave {name} out"
            )
    if tells or not labelled:
        return
    why = "which is not measured"
    if config.best_metric in text_metric_names():
        why = f"and {encoder.why_no_text}"
    raise ConfigError(
        f"best_metric is {config.best_metric!r}, {why}; there are {', '.join(measured)}"
    )
