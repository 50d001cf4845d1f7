"""The model that is exported, and what its run says of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookalike.config import ExportConfig
from lookalike.errors import ConfigError, DataError
from lookalike.evaluation.results import mixture_files, result_files
from lookalike.files import shown
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.pretrained import is_checkpoint, read_checkpoint
from lookalike.report.history import History, read_history


@dataclass(frozen=True)
class Source:
    """The model that is exported, and what its run says of it.

    `name` names no folders, so that it can be shown to anybody. `checkpoint` holds what a
    checkpoint of ours has beside the weights. Without `history` there are no measured numbers,
    and `unmeasured` says why.
    """

    name: str
    encoder: CLIPEncoder
    checkpoint: dict[str, Any] | None
    history: History | None
    unmeasured: str | None

    @property
    def title(self) -> str:
        """Returns the name as one printable line, and what was merged to make the model."""
        return shown(self.name) + self.encoder.title.removeprefix(shown(self.encoder.model_name))

    @property
    def base_model(self) -> str | None:
        """The hub id of the model it was trained from, or is; None if it came from a folder."""
        hub_id: str | None = self.encoder.description()["hub_id"]
        return hub_id

    def origin(self) -> dict[str, Any]:
        """Returns where the model came from, for programs."""
        origin: dict[str, Any] = {"model": self.name}
        if self.checkpoint is not None:
            run = self.checkpoint.get("state", {}).get("run")
            origin |= {"epoch": self.encoder.epoch, "run": run, "base_model": self.base_model}
        return origin


def read_source(config: ExportConfig) -> Source:
    """Loads the model a configuration names, on the CPU, and the results of its run.

    Raises:
        ConfigError: no model is named.
        ModelError, CheckpointError: it cannot be loaded.
    """
    if config.model_name is None:
        raise ConfigError(
            "there is nothing to export: give a checkpoint, such as weights/encoder_epoch_01.pth, "
            "a Transformers folder, or a hub id"
        )
    path = Path(config.model_name)
    if not is_checkpoint(config.model_name):
        encoder = CLIPEncoder(config.model_name, embedding=config.embedding)
        name = path.resolve().name if path.is_dir() else config.model_name
        return Source(name, encoder, None, None, "it was not trained with Lookalike")
    checkpoint = read_checkpoint(path)
    encoder = CLIPEncoder(config.model_name, embedding=config.embedding, checkpoint=checkpoint)
    light = {key: value for key, value in checkpoint.items() if not key.endswith("_state_dict")}
    history, unmeasured = _results_of(path, light, encoder)
    return Source(shown(path.name), encoder, light, history, unmeasured)


def _results_of(
    path: Path, checkpoint: dict[str, Any], encoder: CLIPEncoder
) -> tuple[History | None, str | None]:
    """Returns the measured numbers of these weights and this embedding, or why there are none."""
    state = checkpoint.get("state", {})
    if state.get("step"):
        return None, "it was saved in the middle of an epoch, and never evaluated"
    measured = checkpoint["model"]["embedding"]
    if encoder.embedding != measured:
        return None, f"its run measured the {measured} embedding, not the {encoder.embedding} one"
    out = path.resolve().parent.parent  # of a run's weights/encoder_epoch_XX.pth
    mixture = "interpolation" in checkpoint
    try:
        history = read_history(out, encoder.epoch, of_mixture=mixture)
    except DataError:
        files = mixture_files(out) if mixture else result_files(out, encoder.epoch)
        name = files[1].relative_to(out).as_posix()
        return None, f"its run left no {name} beside it that can be read"
    alpha = checkpoint["interpolation"]["alpha"] if mixture else None
    if (history.current["epoch"], history.current.get("alpha")) != (encoder.epoch, alpha):
        return None, "the results beside it are those of another mixture"
    if history.current.get("run") != state.get("run"):
        return None, "the results beside it are those of another run"
    if not history.measured:
        return None, "the images it was tested on have no labels"
    return history, None
