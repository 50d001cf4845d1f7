"""Weights & Biases: its server, or with WANDB_MODE=offline a folder to `wandb sync` later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lookalike.errors import TrackerError
from lookalike.files import shown
from lookalike.tracking.tracker import TrackedRun


class WandbTracker:
    """Keeps a run under its own id, so that a resumed one goes on where it was."""

    def __init__(self) -> None:
        import wandb

        self._wandb = wandb
        # Silent, it does not stop to ask for a login: nobody may be there to answer.
        settings = wandb.setup(wandb.Settings(silent=True)).settings
        if settings.mode == "online":
            try:
                wandb.login()
            except wandb.Error as error:
                raise TrackerError(
                    "track wandb needs a login, and there is none: wandb login, or set "
                    "WANDB_API_KEY, or keep the run on this disk: WANDB_MODE=offline"
                ) from error

    def begin(self, run: TrackedRun) -> str:
        """Keeps its local files in `wandb` in the run's tracking folder."""
        run.folder.mkdir(parents=True, exist_ok=True)
        wandb = self._wandb
        # Without a console, for what we print is our own business.
        settings = wandb.Settings(console="off", finish_timeout=120.0, finish_timeout_raises=True)
        self._run = wandb.init(
            project=run.project, id=run.id, name=run.name, dir=str(run.folder), resume="allow",
            config=dict(run.config), settings=settings,
        )  # fmt: skip
        for names, axis in (("train/*", "step"), ("epoch/*", "epoch"), ("test/*", "epoch")):
            self._run.define_metric(names, step_metric=axis)
        mode: str = self._run.settings.mode
        if mode == "online":
            return str(self._run.url)
        return f"{mode}; to send it: wandb sync {shown(Path(self._run.dir).parent)}"

    def log_step(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({**numbers, "step": step})

    def log_epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        self._run.log({**numbers, "epoch": epoch})

    def finish(self, *, whole: bool) -> None:
        self._run.finish(exit_code=0 if whole else 1)
