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

    `name` names no folders, so that it can be shown to anybody. `checkpoint` is what a
    checkpoint of ours holds beside the weights, else None. Without `history` there are no
    measured numbers, and `unmeasured` says why.
    """

    name: str
    encoder: CLIPEncoder
    checkpoint: dict[str, Any] | None
    history: History | None
    unmeasured: str | None

    @property
    def base_model(self) -> str | None:
        """The hub id of the model it was trained from, or is; None if it came from a folder."""
        hub_id: str | None = self.encoder.description()["hub_id"]
        return hub_id

    def origin(self) -> dict[str, Any]:
        """Where it came from, for programs."""
        if self.checkpoint is None:
            return {"model": self.name}
        return {
            "model": self.name,
            "epoch": self.encoder.epoch,
            "run": self.checkpoint["state"]["run"],
            "base_model": self.base_model,
        }


def read_source(config: ExportConfig) -> Source:
    """Loads the model a configuration names, on the CPU, and the results of its run.

    Raises:
        ConfigError: no model is named.
        ModelError, CheckpointError: it cannot be loaded.
    """
    if config.model_name is None:
        raise ConfigError(
            "there is nothing to export: name a checkpoint, such as weights/encoder_epoch_01.pth, "
            "a Transformers folder, or a hub id"
        )
    if is_checkpoint(config.model_name):
        return _read_checkpoint(config, Path(config.model_name))
    encoder = CLIPEncoder(config.model_name, embedding=config.embedding)
    folder = Path(config.model_name)
    name = folder.resolve().name if folder.is_dir() else config.model_name
    return Source(name, encoder, None, None, "it was not trained with Lookalike")


def _read_checkpoint(config: ExportConfig, path: Path) -> Source:
    checkpoint = read_checkpoint(path)
    encoder = CLIPEncoder(str(path), embedding=config.embedding, checkpoint=checkpoint)
    light = {key: value for key, value in checkpoint.items() if not key.endswith("_state_dict")}
    history, unmeasured = _results_of(path, light, encoder)
    return Source(shown(path.name), encoder, light, history, unmeasured)


def _results_of(
    path: Path, checkpoint: dict[str, Any], encoder: CLIPEncoder
) -> tuple[History | None, str | None]:
    """The measured numbers of just these weights and this embedding, or why there are none."""
    if checkpoint["state"]["step"]:
        return None, "it was saved in the middle of an epoch, and never measured"
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
    if history.current.get("run") != checkpoint["state"]["run"]:
        return None, "the results beside it are those of another run"
    if not history.measured:
        return None, "the images it was tested on have no labels"
    return history, None
