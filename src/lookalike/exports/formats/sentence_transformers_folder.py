"""A folder that `SentenceTransformer` loads; Transformers loads it too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import CLIPVisionModelWithProjection

from lookalike.errors import MissingExtraError, ModelError
from lookalike.exports.agreement import Embeddings, Form
from lookalike.exports.formats.transformers_folder import save_transformers
from lookalike.files import write_json
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.pretrained import quiet_transformers

_TOKENIZERS = {"tokenizer.json", "vocab.json"}
_PADS_TO_THE_END = ("siglip", "siglip2")  # their text towers were trained on full-length texts
_TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
_POOLING = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
_NORMALIZE = "sentence_transformers.base.modules.normalize.Normalize"


def require_sentence_transformers() -> Any:
    """The package.

    Raises:
        MissingExtraError: it is not installed, or too old to know of images by itself.
    """
    try:
        import sentence_transformers
        import sentence_transformers.base.modules.transformer  # from 5.4 on
    except ImportError as error:
        raise MissingExtraError(
            f"exporting to sentence-transformers needs its release 5.4 or newer ({error}): "
            "pip install 'lookalike[sentence-transformers]'"
        ) from error
    return sentence_transformers


def save_sentence_transformers(encoder: CLIPEncoder, folder: Path) -> None:
    """Writes the Transformers folder, and beside it how an embedding is made with that model.

    These are the files that `SentenceTransformer.save_pretrained` writes: which modules there
    are, and of each its settings.

    Raises:
        ModelError: the embedding is one that sentence-transformers cannot be told of.
        OutputError: the disk is full.
    """
    _check_can_be_told(encoder)
    save_transformers(encoder, folder)
    steps: list[tuple[str, dict[str, Any]]] = [(_NORMALIZE, {})]
    pool = encoder.description()["pool"]
    if pool != "pooler":
        pooling = {"embedding_dimension": encoder.dim, "pooling_mode": pool}
        steps.insert(0, (_POOLING, pooling))
    modules = [{"idx": 0, "name": "0", "path": "", "type": _TRANSFORMER}]
    for place, (kind, settings) in enumerate(steps, start=1):
        name = f"{place}_{kind.rpartition('.')[2]}"
        modules.append({"idx": place, "name": str(place), "path": name, "type": kind})
        write_json(folder / name / "config.json", settings)
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", _first_module(encoder))
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "__version__": {"sentence_transformers": require_sentence_transformers().__version__},
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def _check_can_be_told(encoder: CLIPEncoder) -> None:
    """Raises for embeddings that need more than one call of what AutoModel loads."""
    if isinstance(encoder.backbone, CLIPVisionModelWithProjection):
        raise ModelError(
            f"{encoder.model_name} is a vision tower with its projection and no text tower; "
            "sentence-transformers would load it without the projection. Take --to transformers "
            "or --to onnx"
        )
    if encoder.kind == "pooled" and hasattr(encoder.backbone, "get_image_features"):
        raise ModelError(
            f"of a model with two towers, such as {encoder.model_name}, sentence-transformers "
            "takes the projected embedding alone, and this is the pooled one. Take --to "
            "transformers or --to onnx"
        )


def _first_module(encoder: CLIPEncoder) -> dict[str, Any]:
    """Returns the method of the model that embeds images, and that for texts if there is one."""
    settings: dict[str, Any] = {
        "transformer_task": "feature-extraction",
        # Pixels cut by Pillow are those that the model was measured with.
        "processor_kwargs": {"backend": "pil"},
    }
    if encoder.description()["pool"] != "pooler":
        how = {"method": "forward", "method_output_name": "last_hidden_state"}
        return {**settings, "modality_config": {"image": how}, "module_output_name":
                "token_embeddings"}  # fmt: skip
    settings["module_output_name"] = "sentence_embedding"
    if encoder.kind == "pooled":
        how = {"method": "forward", "method_output_name": "pooler_output"}
        return {**settings, "modality_config": {"image": how}}
    towers = ["image"]
    if _TOKENIZERS & encoder.description()["side_files"].keys():
        towers.append("text")
    settings["modality_config"] = {
        tower: {"method": f"get_{tower}_features", "method_output_name": "pooler_output"}
        for tower in towers
    }
    if encoder.backbone.config.model_type in _PADS_TO_THE_END:
        length = encoder.backbone.config.text_config.max_position_embeddings
        text = {"padding": "max_length", "max_length": length, "truncation": True}
        settings["processing_kwargs"] = {"text": text}
    return settings


def _embed(folder: Path, encoder: CLIPEncoder, images: Sequence[Image.Image]) -> Embeddings:
    package = require_sentence_transformers()
    try:
        with quiet_transformers():
            model = package.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    except (OSError, ValueError, TypeError, ImportError, KeyError) as error:
        raise ModelError(
            f"sentence-transformers cannot load {encoder.model_name} once exported: "
            f"{str(error).strip().partition(chr(10))[0]}"
        ) from error
    rows = model.encode(list(images), convert_to_numpy=True, show_progress_bar=False)
    return np.asarray(rows, dtype=np.float32)


SENTENCE_TRANSFORMERS = Form(save_sentence_transformers, _embed, tolerance=1e-4)
