"""The folder of a run: its files' names, the newest of them, and making room for a new run's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from lookalike.config import TrainConfig
from lookalike.errors import OutputError
from lookalike.evaluation.results import find_results
from lookalike.files import shown, writable_folder

_INTERRUPTED = "interrupted.pth"
_EPOCH_FILE = re.compile(r"encoder_epoch_(\d+)\.pth")


class RunFolder:
    """Where one run writes, below `config.out`.

    Files of an earlier run that this one is told to replace stay until there is something to
    write: `make_room` removes them then.

    Raises:
        OutputError: it cannot be written to; or it holds files of another run, and
            `overwrite` is off.
    """

    def __init__(self, config: TrainConfig, resume: Path | None) -> None:
        self.path = writable_folder(Path(config.out))
        self.interrupted = self.path / "weights" / _INTERRUPTED  # in the middle of an epoch
        self._to_replace = _files_to_replace(config, self.path, resume)

    def epoch_file(self, epoch: int) -> Path:
        """Returns where the checkpoint of a whole epoch lies."""
        return self.path / "weights" / f"encoder_epoch_{epoch:02}.pth"

    def keep_newest(
        self, epoch: int, keep: int | Literal["all"], *, best: int | None = None
    ) -> list[Path]:
        """Removes checkpoints that are outdated once that of `epoch` is there, and returns them.

        The newest `keep` up to `epoch` stay, and that of the epoch `best`. So do later ones,
        where a run was resumed from before them, and everything of a run that this one replaces.
        """
        if keep == "all" or self._to_replace or not self.epoch_file(epoch).is_file():
            return []
        outdated = set(range(epoch - keep + 1)) - {best}
        removed = [path for number, path in _epoch_files(self.path) if number in outdated]
        for path in removed:
            path.unlink(missing_ok=True)
        return removed

    def make_room(self) -> None:
        """Removes what this run replaces."""
        while self._to_replace:
            self._to_replace.pop().unlink(missing_ok=True)


def find_checkpoints(out: Path) -> list[Path]:
    """Returns a run's checkpoints, the furthest last; an interrupted run's is further than any."""
    paths = [path for _, path in _epoch_files(out)]
    interrupted = out / "weights" / _INTERRUPTED
    return [*paths, interrupted] if interrupted.is_file() else paths


def _epoch_files(out: Path) -> list[tuple[int, Path]]:
    """Returns the checkpoints of whole epochs that are there, with their epochs, in order."""
    return sorted(
        (int(match[1]), path)
        for path in (out / "weights").glob("encoder_epoch_*.pth")
        if (match := _EPOCH_FILE.fullmatch(path.name))
    )


def _files_to_replace(config: TrainConfig, out: Path, resume: Path | None) -> list[Path]:
    """Returns files of another run that this one is to replace: it never writes among them."""
    models = sorted((out / "weights").glob("encoder_*.pth"))  # of epochs, and made of them later
    earlier = [path.resolve() for path in models + find_checkpoints(out) + find_results(out)]
    if not earlier or (resume is not None and resume.resolve() in earlier):
        return []
    if not config.overwrite:
        raise OutputError(
            f"{shown(out)} already holds a run's files ({shown(earlier[-1].name)}). Continue "
            "that run: --resume; write elsewhere: --out FOLDER; or replace it: --overwrite"
        )
    if Path(config.model_name).resolve() in earlier:
        raise OutputError(
            f"--overwrite would remove {shown(config.model_name)}, which this run starts from; "
            "write elsewhere with --out FOLDER"
        )
    return earlier
