"""Checkpoints: read, checked before anything in them is used, and the model that they hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModel, CLIPVisionModelWithProjection

from lookalike.data.transforms import Preprocessing
from lookalike.errors import CheckpointError
from lookalike.files import shown
from lookalike.model.loading import schema
from lookalike.model.loading.archive import DamagedError, file_start, no_content, read_archive
from lookalike.model.loading.folder import Pretrained
from lookalike.model.loading.recognise import what_file_it_is
from lookalike.model.loading.side_files import SIDE_FILES
from lookalike.model.loading.transformers import quiet_transformers

CHECKPOINT_FORMAT = "lookalike-checkpoint-4"
# They hold a whole model, but not all that training needs to go on exactly.
_EARLIER_FORMATS = tuple(f"lookalike-checkpoint-{number}" for number in (1, 2, 3))
MOST_EPOCHS = 10**9
_MOST_PX = 16_384
_NOT_FOLLOWED = ("num_labels", "output_attentions", "output_hidden_states")
_WHERE = "a weights/encoder_epoch_XX.pth that lookalike train wrote"

_preprocessing = schema.record(
    {
        "height": schema.whole(1, _MOST_PX),
        "width": schema.whole(1, _MOST_PX),
        "shortest_edge": schema.nothing_or(schema.whole(1, _MOST_PX)),
        "resample": schema.whole(0, 5),
        "scale": schema.number(above=0),
        "mean": schema.list_of(schema.number(), length=3),
        "std": schema.list_of(schema.number(above=0), length=3),
    },
    {"exact": schema.flag},
)
_model = schema.record(
    {
        "embedding": schema.one_of("projected", "pooled"),
        "backbone_class": schema.text(most=200, pattern=r"\w+"),
        "backbone_config": schema.architecture(MOST_EPOCHS),
        "preprocessing": _preprocessing,
        "pool": schema.one_of("pooler", "cls", "mean"),
        # They become files: of these names only, in a folder of ours.
        "side_files": schema.mapping_of(schema.one_of(*SIDE_FILES), schema.text_or_bytes),
    },
    # It stands in model cards, as the hub spells it.
    {"hub_id": schema.nothing_or(schema.text(most=200, pattern=r"[\w.-]+(/[\w.-]+)?"))},
)
tensors = schema.mapping_of(schema.text(most=1000), schema.tensor)
"""A state: tensors by name."""

_trained_with = schema.record(
    {
        "num_epochs": schema.whole(0, MOST_EPOCHS),
        "learning_rate": schema.number(),
        "n_classes_per_batch": schema.whole(1, MOST_EPOCHS),
        "n_samples_per_class": schema.whole(1, MOST_EPOCHS),
    },
    open=True,
)


def _config(value: Any, where: str) -> None:
    schema.mapping_of(schema.text(most=100, pattern=r"\w+"), schema.setting)(value, where)
    _trained_with(value, where)


_checkpoint = schema.record(
    {
        "format": schema.one_of(CHECKPOINT_FORMAT, *_EARLIER_FORMATS),
        "epoch": schema.whole(0, MOST_EPOCHS),
        "model": _model,
        "model_state_dict": tensors,
    },
    {
        "state": schema.record(
            {"step": schema.whole(0, MOST_EPOCHS)},
            {"run": schema.text(most=200), "epoch": schema.whole(0, MOST_EPOCHS)},
            open=True,
        ),
        "config": _config,
        "loss": schema.nothing_or(schema.number()),
        "train_classes": schema.list_of(schema.text(most=100_000)),
        "holdout": schema.nothing_or(
            schema.record(
                {
                    "rule": schema.text(most=100),
                    "seed": schema.whole(0, 2**63 - 1),
                    "classes": schema.list_of(schema.text(most=100_000)),
                    "of_classes": schema.text(most=100),
                }
            )
        ),
        "versions": schema.mapping_of(
            schema.text(most=100, pattern=r"[\w.+-]+"), schema.text(most=100, pattern=r"[\w.+-]+")
        ),
        "interpolation": schema.record({"alpha": schema.number(at_least=0)}, open=True),
    },
    open=True,  # what training goes on from is checked where it does
)


def is_checkpoint(model_name: str) -> bool:
    """Returns True if a name means a checkpoint file, which need not exist, not a model."""
    return Path(model_name).is_file() or (
        model_name.endswith(".pth") and not Path(model_name).is_dir()
    )


def chosen_embedding(
    asked: Literal["auto", "projected", "pooled"], checkpoint: Mapping[str, Any] | None
) -> Literal["projected", "pooled"]:
    """Returns the embedding that is meant: "auto" is the one that a checkpoint was trained for."""
    if asked != "auto":
        return asked
    return checkpoint["model"]["embedding"] if checkpoint else "projected"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Returns the content of a Lookalike checkpoint, on the CPU. No pickled code is ever run, and
    every entry that a model is made of is what it has to be.

    Those that earlier versions of Lookalike wrote are read as well; their `format` tells them.

    Raises:
        CheckpointError: not ours, not whole, not as it was written, or not there.
    """
    try:
        checkpoint = read_archive(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {shown(path)}") from error
    except DamagedError as error:
        raise CheckpointError(
            f"{shown(path)} is not a Lookalike checkpoint, or incomplete "
            f"({no_content(path) or what_file_it_is(path, file_start(path)) or error}); expected "
            f"{_WHERE}"
        ) from error
    found = checkpoint.get("format") if isinstance(checkpoint, dict) else None
    if not isinstance(checkpoint, dict) or found not in (CHECKPOINT_FORMAT, *_EARLIER_FORMATS):
        what = what_file_it_is(path, b"", checkpoint) or f"format {_short(found)}"
        raise CheckpointError(
            f"{shown(path)} is not a Lookalike checkpoint ({what}, expected "
            f"{CHECKPOINT_FORMAT!r}); give {_WHERE}, or a Transformers folder"
        )
    check_content(_checkpoint, checkpoint, path)
    return checkpoint


def check_content(check: schema.Check, content: Any, path: str | Path) -> None:
    """Raises CheckpointError where something in a checkpoint is not what a check expects."""
    try:
        check(content, "")
    except schema.MisfitError as error:
        raise CheckpointError(
            f"{shown(path)} is damaged, or was made by hand: {error}. Take another checkpoint of "
            "the run"
        ) from error


def from_checkpoint(checkpoint: dict[str, Any], path: str) -> Pretrained:
    """Returns the backbone that a Lookalike checkpoint holds; the caller loads its weights.

    Raises:
        CheckpointError: its configuration builds no model, or not one of its weights.
    """
    model, state = checkpoint["model"], checkpoint["model_state_dict"]
    how = {**model["preprocessing"], "exact": True}
    how |= {name: tuple(how[name]) for name in ("mean", "std")}
    settings = dict(model["backbone_config"])
    check_content(schema.architecture(max(len(state), 1000)), settings, path)
    with torch.device("meta"):  # without memory, of which a hostile one may want all
        planned = _build(model["backbone_class"], settings, path).state_dict()
    if misfit := misfit_of(state, {f"backbone.{name}": one for name, one in planned.items()}):
        raise CheckpointError(
            f"the weights in {shown(path)} do not fit the {model['backbone_class']} that it "
            f"describes: {misfit}"
        )
    backbone = _build(model["backbone_class"], settings, path).float()
    side_files, hub_id = dict(model["side_files"]), model.get("hub_id")
    return Pretrained(backbone, Preprocessing(**how), model["pool"], side_files, hub_id)


def _build(class_name: str, settings: Mapping[str, Any], path: str) -> Any:
    try:
        with quiet_transformers():
            config = CONFIG_MAPPING[settings["model_type"]].from_dict(plain_settings(settings))
            if class_name == CLIPVisionModelWithProjection.__name__:
                return CLIPVisionModelWithProjection._from_config(config)
            return AutoModel.from_config(config, trust_remote_code=False)
    # Transformers raises nearly everything for a configuration that it did not write itself.
    except Exception as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"{shown(path)} holds a {class_name} that this release of Transformers cannot build "
            f"({shown(why)}); install the release it was saved with"
        ) from error


def plain_settings(settings: Any) -> Any:
    """Returns a configuration without what has no part in an embedding and is not to be followed: a
    wish for kernels of its own, which is one for code from the hub, for more output, and a number
    of labels.
    """
    if isinstance(settings, (list, tuple)):
        return [plain_settings(one) for one in settings]
    if not isinstance(settings, Mapping):
        return settings
    return {
        name: plain_settings(one)
        for name, one in settings.items()
        if "implementation" not in name and name not in _NOT_FOLLOWED
    }


def misfit_of(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Returns how a state differs from what is expected: names, shapes; None where it fits."""
    for name, tensor in expected.items():
        if name not in state:
            return f"{name} is missing"
        if state[name].shape != tensor.shape:
            return f"{name} is of {list(state[name].shape)}, expected {list(tensor.shape)}"
        if state[name].is_floating_point() != tensor.is_floating_point():
            return f"{name} is of {state[name].dtype}, expected {tensor.dtype}"
    unknown = next((name for name in state if name not in expected), None)
    return None if unknown is None else f"{shown(unknown)} is not known"


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """Returns the name of a tensor that holds what is no finite number; None where all do."""
    floating = (item for item in state.items() if item[1].is_floating_point())
    return next((name for name, one in floating if not bool(one.isfinite().all())), None)


def _short(value: Any) -> str:
    return repr(value) if isinstance(value, str) and len(value) < 100 else "unknown"
