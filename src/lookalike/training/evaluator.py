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
)  # fmt: skip
from lookalike.evaluation.metrics import METRICS
from lookalike.evaluation.protocol import Protocol
from lookalike.evaluation.results import originals_file, report_file, result_files, write_results
from lookalike.evaluation.retrieval import Retrieval, evaluate_encoder
from lookalike.evaluation.scoring.scores import QueryScores
from lookalike.evaluation.text import (
    TextQueries,
    search_by_text,
    text_document,
    text_metric_names,
    text_queries,
)  # fmt: skip
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
)  # fmt: skip


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
        _check_best_is_told(self.config, self.protocol, self.encoder)
        self.history = list[EpochSummary]()
        self.retrieval: Retrieval | None = None
        self.files: list[Path] = []
        self.unreadable: list[Unreadable] = []
        self._text_queries: TextQueries | None = None
        self._originals: Originals | None = None
        self._loader: ImageLoader | None = None
        if self.protocol is not None:
            if self.protocol.gallery.labels is not None and self.encoder.has_text:
                _ = self.encoder.tokenizer  # one that cannot be built says so before training
            self._loader = ImageLoader(
                self.protocol.files,
                replace(self.encoder.preprocessing, exact=self.config.exact_pixels),
                self.runtime,
                max_megapixels=self.config.max_megapixels,
                cache=self.cache,
                progress=self.progress,
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
                f"drift from the baseline cannot be measured: {shown(path)} is missing, "
                "damaged, or of another run or test"
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
        retrieval, text = self.evaluate(f"evaluating epoch {state.epoch}")
        summary, written = world.on_main(lambda: self._write_epoch(state, retrieval, text))
        self.files = [file for file in self.files if file not in written] + written
        self.retrieval, self.unreadable = retrieval, retrieval.unreadable
        self.history.append(summary)

    def evaluate(self, title: str) -> tuple[Retrieval, dict[str, Any]]:
        """Measures the encoder as it is now; returns what its metrics file says of text, too."""
        config, progress = self.config, self.progress
        assert self.protocol is not None, "there is nothing to measure on"
        assert self._loader is not None, "made with the protocol"
        embedder = Embedder(  # of the weights as they are now
            self.encoder, runtime=self.runtime, batch_size=config.eval_batch_size, progress=progress
        )
        retrieval = evaluate_encoder(
            embedder, self.protocol, self._loader,
            top_k_wanted=config.top_k, progress=progress, title=title,
        )  # fmt: skip
        return retrieval, text_document(self._search_by_text(retrieval, self.protocol))

    def write(
        self,
        state: TrainingState,
        retrieval: Retrieval,
        text: dict[str, Any],
        alpha: float | None = None,
    ) -> tuple[Drift | None, list[Path]]:
        """Writes the result files of an epoch, or of the mixture of its weights with the baseline's
        that has `alpha` of them; returns the drift from the baseline, and the files.
        """
        assert self.protocol is not None, "it was measured by one"
        drift = measure_drift(self._originals, retrieval) if self._originals else None
        about = text | {
            "run": state.run,
            "loss": state.loss,
            "config": asdict(self.config),
            "drift": asdict(drift) if drift else None,
        }
        files = write_results(
            self.folder.path, state.epoch, retrieval, self.protocol,
            about=about if alpha is None else about | {"alpha": alpha},
            of_mixture=alpha is not None,
        )  # fmt: skip
        return drift, list(files)

    def _write_epoch(
        self, state: TrainingState, retrieval: Retrieval, text: dict[str, Any]
    ) -> tuple[EpochSummary, list[Path]]:
        """Writes what was measured of an epoch, and its report."""
        self.folder.make_room()
        files = self._keep_originals(state, retrieval)
        drift, written = self.write(state, retrieval, text)
        files += written
        if self.config.report:
            files += self.report(state.epoch, retrieval)
        metrics, texts = retrieval.metrics, text["text_metrics"]
        return EpochSummary(state.epoch, state.loss, metrics, texts, drift), files

    @property
    def best(self) -> Best | None:
        """Returns the best epoch so far, by the metric that the configuration names."""
        best = best_epoch(self.history, self.config.best_metric)
        if best is None:
            return None
        path = self.folder.epoch_file(best.epoch)
        return replace(best, checkpoint=path if path.is_file() else None)

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
        out, progress = self.folder.path, self.progress
        assert self.protocol is not None, "it was measured by one"
        try:
            return [write_report(out, epoch, retrieval, self.protocol, progress=progress)]
        # Also of what a page can fail of, such as a plot library: training must not end with it.
        except Exception as error:
            kind = "" if isinstance(error, LookalikeError) else f"{type(error).__name__}: "
            progress.warn(f"no report of epoch {epoch}: {kind}{error}")
            return []

    def _is_reported(self, epoch: int) -> bool:
        """Returns true where the report, if there is to be one, is of the newest metrics."""
        if not self.config.report or self.protocol is None:
            return True
        out = self.folder.path
        report, metrics = report_file(out), result_files(out, epoch)[1]
        return report.is_file() and report.stat().st_mtime_ns >= metrics.stat().st_mtime_ns


def _check_best_is_told(
    config: TrainConfig, protocol: Protocol | None, encoder: CLIPEncoder
) -> None:
    """Refuses, before anything is trained, what asks for a best model that nothing would tell."""
    labelled = protocol is not None and protocol.labelled
    has_texts = protocol is not None and protocol.gallery.labels is not None and encoder.has_text
    texts = text_metric_names()
    measured = (*(METRICS if labelled else ()), *(texts if has_texts else ()))
    tells = config.best_metric in measured
    if labelled and not tells:
        why = "which is not measured"
        if config.best_metric in texts:
            why = f"and {encoder.why_no_text}"
        raise ConfigError(
            f"best_metric is {config.best_metric!r}, {why}; choose from {', '.join(measured)}"
        )
    needs = {"patience": not tells and config.patience, "interpolation": config.interpolation}
    for option, value in needs.items():
        if value and not labelled:
            raise ConfigError(
                f"{option} is {value}, but without labelled test images there is no way to tell "
                f"which epoch is better; give --test, or leave {option} out"
            )
