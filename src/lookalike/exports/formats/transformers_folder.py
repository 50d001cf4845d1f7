"""A folder that Transformers' `from_pretrained` loads, text tower and all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError

from lookalike.errors import ModelError, OutputError
from lookalike.exports.agreement import Embeddings, Form, embed_images
from lookalike.files import shown
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.pretrained import quiet_transformers, write_side_files


def save_transformers(encoder: CLIPEncoder, folder: Path) -> None:
    """Writes weights (safetensors), configuration, and the small files of the original model."""
    state = encoder.backbone.state_dict()
    if encoder.description()["pool"] != "pooler":
        # Where there are such weights the original came without them, so they are random and not
        # used. Left out here as well, whoever loads the folder sees that as we did.
        state = {name: tensor for name, tensor in state.items() if "pooler" not in name}
    try:
        with quiet_transformers():
            encoder.backbone.save_pretrained(folder, state_dict=state)
    except SafetensorError as error:  # reports a full disk in its own way
        raise OutputError(
            f"cannot write {folder.name}: {error}. Free some room, or choose another disk with "
            "--out; nothing is left of this export"
        ) from error
    except OSError:
        raise
    # Its own checks refuse in many ways to write a configuration that it has read.
    except Exception as error:
        raise ModelError(
            f"Transformers does not save the configuration of {shown(encoder.model_name)}: "
            f"{shown(' '.join(str(error).split()))[:300]}"
        ) from error
    # The weights are written by way of a temporary file, which their owner alone may read.
    mode = (folder / "config.json").stat().st_mode
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)
    # The config.json just written is of these weights.
    side_files = {k: v for k, v in encoder.side_files.items() if k != "config.json"}
    write_side_files(side_files, folder)


def _embed(folder: Path, encoder: CLIPEncoder, images: Sequence[Image.Image]) -> Embeddings:
    return embed_images(CLIPEncoder(str(folder), embedding=encoder.embedding), images)


TRANSFORMERS = Form(save_transformers, _embed, tolerance=0.0)
