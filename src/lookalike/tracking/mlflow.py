"""MLflow: the server that MLFLOW_TRACKING_URI names, else a database in the run's folder."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lookalike.files import shown
from lookalike.tracking.tracker import TrackedRun

if TYPE_CHECKING:
    from mlflow.entities import Metric

_NOT_TAKEN = re.compile(r"[^\w./ -]")  # in the name of a metric
_RUN_TAG = "lookalike.run"
_BETWEEN_SENDS_S = 5.0
_MOST_METRICS, _MOST_PARAMS = 1000, 100  # MLflow's own limits for one request

# Where nobody has set them. MLflow would wait for a dead server for minutes, and training with it;
# and a run is nobody's business but that of the server named.
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
        import mlflow
        import sqlalchemy  # noqa: F401 - MLflow imports it later, and says nothing of it
        from mlflow import entities

        self._mlflow, self._entities = mlflow, entities
        self._waiting: list[Metric] = []
        self._sent_at = 0.0

    def begin(self, run: TrackedRun) -> str:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        if self._mlflow.is_tracking_uri_set():
            uri, artifacts = self._mlflow.get_tracking_uri(), None
        else:
            run.folder.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{(run.folder / 'mlflow.db').as_posix()}"
            artifacts = (run.folder / "mlflow-artifacts").as_uri()
        self._client = client = self._mlflow.MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(run.project)
        experiment = (
            found.experiment_id
            if found
            else client.create_experiment(run.project, artifact_location=artifacts)
        )
        known = client.search_runs(
            [experiment], filter_string=f"tags.`{_RUN_TAG}` = '{run.id}'", max_results=1
        )
        if known:
            self._run_id = known[0].info.run_id
            client.update_run(self._run_id, status="RUNNING")
        else:
            created = client.create_run(experiment, run_name=run.name, tags={_RUN_TAG: run.id})
            self._run_id = created.info.run_id
            params = [self._entities.Param(name, str(value)) for name, value in run.config.items()]
            for first in range(0, len(params), _MOST_PARAMS):
                client.log_batch(self._run_id, params=params[first : first + _MOST_PARAMS])
        return f"mlflow ui --backend-store-uri {shown(uri)}" if artifacts else shown(uri)

    def log_step(self, step: int, numbers: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        self._waiting += [
            self._entities.Metric(
                _NOT_TAKEN.sub("_", name.replace("@", "_at_")), value, now_ms, step
            )
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
            self._client.log_batch(self._run_id, metrics=self._waiting[:_MOST_METRICS])
            del self._waiting[:_MOST_METRICS]
