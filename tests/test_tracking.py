"""Trackers: what they hold is read back with their own readers, and their failures end no run."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import Settings, Watch

import lookalike
from lookalike.config import TrainConfig
from lookalike.config.settings import config_from
from lookalike.errors import MissingExtraError, TrackerError
from lookalike.tracking import course
from lookalike.tracking.course import Tracking, make_tracker
from lookalike.tracking.tracker import TrackedRun

RUN = "3f2a9c1e00112233"
KINDS = ["tensorboard", "wandb", "mlflow"]
ConfigOf = Callable[..., TrainConfig]

# What trackers use of other packages is theirs to keep up to date.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@dataclass
class Kept:
    """What a tracker kept of one run: points (x, value) by name, and the options as text."""

    project: str
    name: str
    config: dict[str, str]
    points: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


def read_tensorboard(out: Path) -> list[Kept]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root, runs = out / "tracking" / "tensorboard", []
    for folder in sorted(root.glob("*/*")):
        events = EventAccumulator(str(folder)).Reload()
        tags = events.Tags()
        text = events.Tensors(tags["tensors"][0])[0].tensor_proto.string_val[0].decode()
        config = dict(line.strip().split(": ", 1) for line in text.splitlines())
        kept = Kept(folder.parent.name, folder.name, config)
        for name in tags["scalars"]:
            kept.points[name] = [(one.step, one.value) for one in events.Scalars(name)]
        runs.append(kept)
    return runs


def read_wandb(out: Path) -> list[Kept]:
    """All that `wandb sync` would send, in its order; files of one run id are one run there."""
    runs: dict[str, Kept] = {}
    for path in sorted((out / "tracking" / "wandb").glob("offline-run-*/*.wandb")):
        records = finished_wandb_records(path)
        about = next(one.run for one in records if one.WhichOneof("record_type") == "run")
        config = {one.key: str(json.loads(one.value_json)) for one in about.config.update}
        kept = runs.setdefault(about.run_id, Kept(about.project, about.display_name, config))
        axes = {one.metric.glob_name: one.metric.step_metric for one in records
                if one.WhichOneof("record_type") == "metric"}  # fmt: skip
        for record in records:
            row = {(one.key or one.nested_key[0]): json.loads(one.value_json)
                   for one in record.history.item}  # fmt: skip
            for name, value in row.items():
                axis = axes.get(f"{name.partition('/')[0]}/*")
                if axis:
                    kept.points.setdefault(name, []).append((row[axis], value))
    return list(runs.values())


def finished_wandb_records(path: Path) -> list[Any]:
    """Another process writes the file, and is not always done when the run is finished."""
    until = time.monotonic() + 30
    while True:
        records = list(wandb_records(path))
        if any(one.WhichOneof("record_type") == "exit" for one in records):
            return records
        assert time.monotonic() < until, f"{path} is still not whole"
        time.sleep(0.05)


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a W&B run file: LevelDB's log format after seven bytes of header."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, block = path.read_bytes(), 7, b"", 32768
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or its end
            yield Record.FromString(whole)
            whole = b""


def read_mlflow(out: Path) -> list[Kept]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{(out / 'tracking' / 'mlflow.db').as_posix()}")
    runs = []
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            kept = Kept(experiment.name, run.info.run_name, run.data.params)
            for name in run.data.metrics:
                history = client.get_metric_history(run.info.run_id, name)
                points = [(one.step, one.value) for one in history]
                kept.points[name.replace("_at_", "@")] = sorted(points)
            runs.append(kept)
    return runs


READERS = {"tensorboard": read_tensorboard, "wandb": read_wandb, "mlflow": read_mlflow}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def tracking(config: TrainConfig, *, step: int = 0, progress: Watch | None = None) -> Tracking:
    progress = progress or Watch()
    return Tracking(make_tracker(config, progress), config, run=RUN, step=step, progress=progress)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: making one takes seconds, copying one does not."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        MlflowClient(f"sqlite:///{path.as_posix()}").search_experiments()
    return path


@pytest.fixture
def config_of(empty_store: Path) -> ConfigOf:
    def make(kind: str, out: Path, **changes: Any) -> TrainConfig:
        if kind == "mlflow" and not (out / "tracking").exists():
            (out / "tracking").mkdir(parents=True)
            shutil.copy(empty_store, out / "tracking" / "mlflow.db")
        return config_from(TrainConfig, {"track": kind, "out": str(out)} | changes)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_tracker_keeps_steps_epochs_and_the_whole_configuration(
    kind: str, tmp_path: Path, config_of: ConfigOf
) -> None:
    out = tmp_path / "second"
    config = config_of(kind, out, track_project="shoes", learning_rate=3e-5)
    with tracking(config) as one:
        one.epoch(0, None, {"recall@1": 0.25, "median rank": float("inf")})
        one.step(1, 8, {"loss": 2.5, "grad_norm": 1.5})
        one.step(2, 8, {"loss": 1.5, "grad_norm": 0.5})
        one.epoch(1, 2.0, {"recall@1": 0.75, "median rank": 3.0})
        one.step(3, 8, {"loss": 0.5})

    (kept,) = READERS[kind](out)
    assert (kept.project, kept.name) == ("shoes", "second-3f2a9c1e")
    assert kept.config["learning_rate"] == "3e-05"
    assert set(kept.config) >= set(TrainConfig.__dataclass_fields__)
    assert kept.points["test/recall@1"] == [(0, 0.25), (1, 0.75)]
    assert kept.points["test/median rank"] == [(1, 3.0)]
    assert kept.points["epoch/loss"] == [(1, 2.0)]
    assert kept.points["train/loss"] == [(1, 2.5), (2, 1.5), (3, 0.5)]
    assert kept.points["train/grad_norm"] == [(1, 1.5), (2, 0.5)]
    ((step, speed),) = kept.points["train/images_per_s"]  # none for the first step of an epoch
    assert step == 2
    assert speed > 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_goes_on_in_the_same_tracked_run(
    kind: str, tmp_path: Path, config_of: ConfigOf
) -> None:
    config = config_of(kind, tmp_path / "out")
    with tracking(config) as one:
        one.epoch(0, None, {"recall@1": 0.25})
        one.step(1, 8, {"loss": 2.5})
        one.step(2, 8, {"loss": 1.5})
    with tracking(config_of(kind, tmp_path / "out", num_epochs=2), step=2) as one:
        one.step(3, 8, {"loss": 1.0})
        one.epoch(1, 2.0, {"recall@1": 0.75})

    (kept,) = READERS[kind](tmp_path / "out")
    assert kept.points["train/loss"] == [(1, 2.5), (2, 1.5), (3, 1.0)]
    assert kept.points["test/recall@1"] == [(0, 0.25), (1, 0.75)]


def test_steps_that_are_done_anew_after_a_kill_replace_those_before(
    tmp_path: Path, config_of: ConfigOf
) -> None:
    config = config_of("tensorboard", tmp_path / "out")
    killed = tracking(config)
    killed.epoch(0, None, {"recall@1": 0.25})
    for step in (1, 2, 3):
        killed.step(step, 8, {"loss": 9.0})
    killed.epoch(1, 9.0, None)  # which flushes
    with tracking(config, step=2) as one:
        one.step(3, 8, {"loss": 1.0})

    (kept,) = read_tensorboard(tmp_path / "out")
    assert kept.points["train/loss"] == [(1, 9.0), (2, 9.0), (3, 1.0)]
    assert kept.points["test/recall@1"] == [(0, 0.25)]


def test_mlflow_tells_a_stopped_run_from_a_whole_one(tmp_path: Path, config_of: ConfigOf) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{(tmp_path / 'tracking' / 'mlflow.db').as_posix()}")

    def status() -> str:
        (experiment,) = [e for e in client.search_experiments() if e.name == "lookalike"]
        (run,) = client.search_runs([experiment.experiment_id])
        return str(run.info.status)

    config = config_of("mlflow", tmp_path)
    stopped = tracking(config)
    assert status() == "RUNNING"
    stopped.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert status() == "KILLED"
    with tracking(config):
        assert status() == "RUNNING"
    assert status() == "FINISHED"


def test_mlflow_names_hold_no_character_that_it_refuses(
    tmp_path: Path, config_of: ConfigOf
) -> None:
    progress = Watch()
    with tracking(config_of("mlflow", tmp_path), progress=progress) as one:
        one.epoch(0, None, {"mAP@10/min(10,R)": 0.5})
    (kept,) = read_mlflow(tmp_path)
    assert kept.points == {"test/mAP@10/min_10_R_": [(0, 0.5)]}
    assert progress.warnings == []


def test_training_tells_its_tracker_what_it_measures_and_learns_the_same(
    settings: Settings, photos: Path
) -> None:
    plain = lookalike.train(TrainConfig(**settings(num_epochs=2)), progress=Watch())
    tracked = settings(track="tensorboard", out=str(photos / "tracked"))
    lookalike.train(TrainConfig(**tracked), progress=Watch())
    result = lookalike.train(
        TrainConfig(**tracked | {"num_epochs": 2}),
        resume=photos / "tracked" / "weights" / "encoder_epoch_01.pth",
        progress=Watch(),
    )

    (kept,) = read_tensorboard(photos / "tracked")
    for epoch in result.history:
        document = photos / "tracked" / "results" / f"metrics_epoch_{epoch.epoch:02}.json"
        for name, value in json.loads(document.read_text())["metrics"].items():
            assert dict(kept.points[f"test/{name}"])[epoch.epoch] == pytest.approx(value), name
        assert epoch.text_metrics is not None
        of_text = dict(kept.points["test/text-mAP"])
        assert of_text[epoch.epoch] == pytest.approx(epoch.text_metrics["mAP"])
    steps = [step for step, _ in kept.points["train/loss"]]
    assert steps == list(range(1, 11))
    assert [rate for _, rate in kept.points["train/learning_rate"]] == pytest.approx([1e-3] * 10)
    assert all(norm > 0 for _, norm in kept.points["train/grad_norm"])
    losses = [loss for _, loss in kept.points["train/loss"]]
    assert sum(losses[5:]) / 5 == pytest.approx(result.history[-1].loss)
    assert dict(kept.points["epoch/loss"]) == pytest.approx(
        {one.epoch: one.loss for one in result.history if one.loss is not None}
    )
    for name, weight in plain.encoder.state_dict().items():
        assert torch.equal(weight, result.encoder.state_dict()[name]), name


class Failing:
    """A tracker that fails as told, and counts what it is asked."""

    def __init__(self, broken: bool = True) -> None:
        self.broken, self.asked = broken, list[str]()

    def _answer(self, what: str) -> None:
        self.asked.append(what)
        if self.broken:
            raise ConnectionError("no route\nto host")

    def begin(self, run: TrackedRun) -> str:
        return f"{run.project}/{run.name}"

    def log_step(self, step: int, numbers: Mapping[str, float]) -> None:
        self._answer(f"step {step}")

    def log_epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        self._answer(f"epoch {epoch}")

    def finish(self, *, whole: bool) -> None:
        self._answer("whole" if whole else "not whole")


def test_a_tracker_that_fails_is_left_alone_until_the_next_epoch(
    tmp_path: Path, config_of: ConfigOf
) -> None:
    tracker, progress = Failing(), Watch()
    config = config_of("mlflow", tmp_path)
    with Tracking(tracker, config, run=RUN, step=0, progress=progress) as one:
        one.step(1, 8, {"loss": 1.0})
        one.step(2, 8, {"loss": 1.0})
        one.epoch(1, 1.0, None)
        one.step(3, 8, {"loss": 1.0})
        tracker.broken = False
        one.epoch(2, 1.0, None)
        one.step(4, 8, {"loss": 1.0})
    assert tracker.asked == ["step 1", "epoch 1", "epoch 2", "step 4", "whole"]
    assert progress.warnings == [
        "mlflow failed and misses part of this run, which continues: ConnectionError: no route "
        "to host"
    ]


def test_training_outlives_its_tracker(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.tracking.mlflow.MlflowTracker", Failing)
    progress = Watch()
    result = lookalike.train(TrainConfig(**settings(track="mlflow")), progress=progress)
    assert [one.epoch for one in result.history] == [0, 1]
    assert [w for w in progress.warnings if "no route to host" in w] == progress.warnings
    assert len(progress.warnings) == 1


def test_a_store_that_breaks_in_the_middle_costs_one_warning(
    tmp_path: Path, config_of: ConfigOf
) -> None:
    progress = Watch()
    with tracking(config_of("mlflow", tmp_path), progress=progress) as one:
        one.epoch(0, None, {"recall@1": 0.5})
        (tmp_path / "tracking" / "mlflow.db").write_bytes(b"no database" * 1000)
        one.epoch(1, 1.0, {"recall@1": 0.5})
        one.epoch(2, 1.0, {"recall@1": 0.5})
    (warning,) = progress.warnings
    assert "mlflow failed" in warning
    assert "\n" not in warning


@pytest.mark.parametrize("kind", [*KINDS, "trackio"])
def test_a_tracker_that_is_not_installed_names_the_line_that_installs_it(
    kind: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    # Before anything is read: there is no such folder either.
    config = TrainConfig(**settings(train="no-such-folder", track=kind))
    with pytest.raises(MissingExtraError, match=rf"pip install 'lookalike\[{kind}\]'"):
        lookalike.train(config, progress=Watch())


def test_a_tracker_that_is_not_installed_can_be_done_without(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    progress = Watch()
    config = TrainConfig(**settings(track="mlflow", track_optional=True, num_epochs=0))
    lookalike.train(config, progress=progress)
    (warning,) = progress.warnings
    assert warning.startswith("this run is not tracked: track mlflow needs MLflow, which")


def test_a_server_that_cannot_be_reached_is_told_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config_of: ConfigOf
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackerError, match=r"mlflow cannot open the run.*--track-optional"):
        tracking(config_of("mlflow", tmp_path))
    progress = Watch()
    with tracking(config_of("mlflow", tmp_path, track_optional=True), progress=progress) as one:
        one.step(1, 8, {"loss": 1.0})
    (warning,) = progress.warnings
    assert "this run is not tracked: mlflow cannot open the run" in warning


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        env=os.environ | environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_wandb_without_a_login_is_refused_and_does_not_ask_for_one(tmp_path: Path) -> None:
    done = run_python(
        "from lookalike.config import TrainConfig\n"
        "from lookalike.progress import SilentProgress\n"
        "from lookalike.tracking.course import make_tracker\n"
        "make_tracker(TrainConfig(track='wandb'), SilentProgress())",
        WANDB_MODE="online", WANDB_API_KEY="", HOME=str(tmp_path), USERPROFILE=str(tmp_path),
        NETRC=str(tmp_path / "netrc"),
    )  # fmt: skip
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        "lookalike.errors.TrackerError: track wandb needs a login, and there is none: wandb login, "
        "or set WANDB_API_KEY, or keep the run on this disk: WANDB_MODE=offline"
    )


@pytest.mark.slow
def test_mlflow_makes_its_own_store_below_the_run(tmp_path: Path) -> None:
    with tracking(config_from(TrainConfig, {"track": "mlflow", "out": str(tmp_path)})) as one:
        one.epoch(0, None, {"recall@1": 0.5})
    (kept,) = read_mlflow(tmp_path)
    assert kept.points == {"test/recall@1": [(0, 0.5)]}
    assert [one.name for one in (tmp_path / "tracking").iterdir()] == ["mlflow.db"]


@pytest.mark.slow
def test_trackio_keeps_a_run_and_takes_it_up_again(tmp_path: Path) -> None:
    def track(step: int, calls: str) -> str:
        done = run_python(
            "from lookalike.tracking.course import Tracking, make_tracker\n"
            "from lookalike.config import TrainConfig\n"
            "from lookalike.progress import PlainProgress\n"
            f"config = TrainConfig(track='trackio', out={str(tmp_path / 'second')!r})\n"
            "progress = PlainProgress()\n"
            f"with Tracking(make_tracker(config, progress), config, run={RUN!r}, step={step}, "
            f"progress=progress) as one:\n    {calls}\n",
            TRACKIO_DIR="",
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        return done.stderr

    told = track(0, "one.epoch(0, None, {'mAP@R': 0.25}); one.step(1, 8, {'loss': 2.5})")
    folder = tmp_path / "second" / "tracking" / "trackio"
    assert told == f"track    trackio · trackio show, where TRACKIO_DIR={folder}\n"
    track(1, "one.step(2, 8, {'loss': 1.5}); one.epoch(1, 2.0, {'mAP@R': 0.75})")

    done = run_python(
        "import json; from trackio.sqlite_storage import SQLiteStorage as S\n"
        "(run,) = S.get_runs('lookalike')\n"
        "print(json.dumps([run, S.get_run_config('lookalike', run), "
        "S.get_logs('lookalike', run)]))",
        TRACKIO_DIR=str(folder),
    )
    name, config, logs = json.loads(done.stdout)
    assert name == "second-3f2a9c1e"
    assert config["temperature"] == 0.07
    points = {(key, row["step"]): value for row in logs for key, value in row.items()}
    assert points[("test/mAP@R", 0)] == 0.25
    assert points[("test/mAP@R", 1)] == 0.75
    assert points[("train/loss", 1)] == 2.5
    assert points[("train/loss", 2)] == 1.5


def test_every_tracker_that_can_be_asked_for_has_a_home() -> None:
    from typing import get_args, get_type_hints

    asked = get_args(get_type_hints(TrainConfig)["track"])
    assert {"none", *course._TRACKERS} == set(asked)
