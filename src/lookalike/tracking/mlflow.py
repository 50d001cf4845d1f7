"""MLflow: the server that MLFLOW_TRACKING_URI names, else a database in the run's folder."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lookalike.errors import MissingExtraError
from lookalike.files import shown
from lookalike.tracking.tracker import TrackedRun

if TYPE_CHECKING:
    from mlflow.entities import Metric

_RUN_TAG = "lookalike.run"
_BETWEEN_SENDS_S = 5.0
_MOST_AT_ONCE = 1000  # MLflow's own limit for metrics in one request
_MOST_PARAMS_AT_ONCE = 100  # and for parameters

# Of MLflow itself, where nobody has set them. It would wait for a dead server for minutes, and
# training with it; and what a run is like is nobody's business but that of the server named.
_MANNERS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class MlflowTracker:
    """Knows a run again by a tag. Steps are sent together, every few seconds.

    MLflow's names hold no `@`: `recall@1` is `recall_at_1` there.
    """

    def __init__(self) -> None:
        for name, value in _MANNERS.items():
            os.environ.setdefault(name, value)
        try:
            import mlflow
            import sqlalchemy  # noqa: F401 - MLflow imports it later, and says nothing of it
            from mlflow import entities
        except ImportError as error:
            raise MissingExtraError(
                "track mlflow needs MLflow: pip install 'lookalike[mlflow]'"
            ) from error
        self._mlflow, self._entities = mlflow, entities
        self._waiting: list[Metric] = []
        self._sent_at = 0.0

    def begin(self, run: TrackedRun) -> str:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        mlflow, database = self._mlflow, run.folder / "mlflow.db"
        if mlflow.is_tracking_uri_set():
            uri, artifacts = mlflow.get_tracking_uri(), None
        else:
            run.folder.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{database.as_posix()}"
            artifacts = (run.folder / "mlflow-artifacts").as_uri()
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name(run.project)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(run.project, artifact_location=artifacts)
        )
        self._run_id = self._take_up(run, experiment_id) or self._create(run, experiment_id)
        return f"mlflow ui --backend-store-uri {shown(uri)}" if artifacts else shown(uri)

    def _take_up(self, run: TrackedRun, experiment_id: str) -> str | None:
        """The run that was begun under this id, now running again."""
        known = self._client.search_runs(
            [experiment_id], filter_string=f"tags.`{_RUN_TAG}` = '{run.id}'", max_results=1
        )
        if not known:
            return None
        run_id: str = known[0].info.run_id
        self._client.update_run(run_id, status="RUNNING")
        return run_id

    def _create(self, run: TrackedRun, experiment_id: str) -> str:
        created = self._client.create_run(experiment_id, run_name=run.name, tags={_RUN_TAG: run.id})
        run_id: str = created.info.run_id
        params = [self._entities.Param(name, str(value)) for name, value in run.config.items()]
        for first in range(0, len(params), _MOST_PARAMS_AT_ONCE):
            self._client.log_batch(run_id, params=params[first : first + _MOST_PARAMS_AT_ONCE])
        return run_id

    def log_step(self, step: int, numbers: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        self._waiting += [
            self._entities.Metric(_metric_name(name), value, now_ms, step)
            for name, value in numbers.items()
        ]
        if time.monotonic() - self._sent_at > _BETWEEN_SENDS_S:
            self._send()

    def log_epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        self.log_step(epoch, numbers)
        self._send()

    def finish(self, *, whole: bool) -> None:
        self._send()
        self._client.set_terminated(self._run_id, status="FINISHED" if whole else "KILLED")

    def _send(self) -> None:
        """Sends what waits. What could not be sent goes on waiting."""
        self._sent_at = time.monotonic()
        while self._waiting:
            self._client.log_batch(self._run_id, metrics=self._waiting[:_MOST_AT_ONCE])
            del self._waiting[:_MOST_AT_ONCE]


def _metric_name(name: str) -> str:
    """A name of the characters that MLflow takes."""
    return re.sub(r"[^\w./ -]", "_", name.replace("@", "_at_"))
