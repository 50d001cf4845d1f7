"""How Transformers is asked: without its remarks, this disk first, and no code of a model's own."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from lookalike.errors import ModelError, first_line, nearest
from lookalike.files import shown

# Neither run nor asked about, wherever it comes from.
NO_CODE = {"trust_remote_code": False}
# What people mean by a name that is not to be had.
_WELL_KNOWN = (
    "openai/clip-vit-large-patch14-336", "openai/clip-vit-large-patch14",
    "openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16", "facebook/dinov2-small",
    "facebook/dinov2-base", "facebook/dinov2-large", "google/siglip-base-patch16-224",
)  # fmt: skip
_MOST_OF_A_REASON = 300  # characters
_Loaded = TypeVar("_Loaded")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Holds back Transformers' remarks and bars: what matters in them becomes our errors."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def load_part(load: Callable[..., _Loaded], name: str, **options: Any) -> _Loaded:
    """Loads with one `from_pretrained`: from this disk first, from the hub only if that fails."""
    if not os.path.isdir(name):
        try:
            return load(name, local_files_only=True, **options)
        except (OSError, ValueError):
            pass  # not fetched yet, or not all of it: ask the hub
    try:
        return load(name, **options)
    # What files of unknown origin make Transformers, its parsers and unpicklers raise is nearly
    # everything there is.
    except Exception as error:
        raise ModelError(why_not_loaded(name, error)) from error


def why_not_loaded(name: str, error: Exception) -> str:
    why = shown(first_line(error))
    if "trust_remote_code" in str(error):
        return (
            f"{shown(name)} needs code of its own, which comes with it and is never run here; take "
            "a model of a kind that Transformers has itself, such as CLIP, SigLIP or DINOv2"
        )
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return (
            f"the weights of {shown(name)} (pytorch_model.bin) hold more than tensors, which may "
            "be code and is never run, or are damaged; take the model with a model.safetensors"
        )
    if isinstance(error, SafetensorError):
        return (
            f"cannot load a model from the folder {shown(name)}: its weights (model.safetensors) "
            f"are damaged or cut off ({why}); download the model again"
        )
    if os.path.isdir(name):
        why = shown(" ".join(str(error).split()))[:_MOST_OF_A_REASON].rstrip(".")
        return (
            f"cannot load a model from the folder {shown(name)}: {why}. It needs "
            "what save_pretrained writes: config.json, preprocessor_config.json, model.safetensors"
        )
    last = {known.partition("/")[2]: known for known in _WELL_KNOWN}
    near = None if name in _WELL_KNOWN else nearest(name.partition("/")[2] or name, last, 0.9)
    return (
        f"the model {name} is not on this disk and cannot be downloaded ({why}). "
        f"{f'Did you mean {last[near]}?' if near else 'Check the name and the connection.'} "
        "--model-name takes a hub id, a Transformers folder, or a Lookalike checkpoint (.pth)"
    )
