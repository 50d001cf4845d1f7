"""A folder that `SentenceTransformer` loads; Transformers loads it too."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import CLIPVisionModelWithProjection

from lookalike.errors import ModelError, first_line
from lookalike.exports.agreement import Embeddings, Form
from lookalike.exports.formats.transformers_folder import save_transformers
from lookalike.files import write_json
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.pretrained import quiet_transformers

_PADS_TO_THE_END = ("siglip", "siglip2")  # their text towers were trained on full-length texts
_TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
_POOLING = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
_NORMALIZE = "sentence_transformers.base.modules.normalize.Normalize"


def save_sentence_transformers(encoder: CLIPEncoder, folder: Path) -> None:
    """Writes the Transformers folder, and the small files that tell which modules embed, and how.

    Raises:
        ModelError: the embedding is one that sentence-transformers cannot be told of.
    """
    _check_can_be_told(encoder)
    save_transformers(encoder, folder)
    modules = [{"idx": 0, "name": "0", "path": "", "type": _TRANSFORMER}]
    steps: list[tuple[str, dict[str, Any]]] = [(_NORMALIZE, {})]
    pool = encoder.description()["pool"]
    if pool != "pooler":
        steps.insert(0, (_POOLING, {"embedding_dimension": encoder.dim, "pooling_mode": pool}))
    for place, (kind, settings) in enumerate(steps, start=1):
        name = f"{place}_{kind.rpartition('.')[2]}"
        modules.append({"idx": place, "name": str(place), "path": name, "type": kind})
        write_json(folder / name / "config.json", settings)
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", _first_module(encoder))
    about = {
        "model_type": "SentenceTransformer",
        "__version__": {"sentence_transformers": version("sentence-transformers")},
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    write_json(folder / "config_sentence_transformers.json", about)


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
    """Returns the settings of the module that embeds images, and texts if the model can."""
    pools = encoder.description()["pool"] != "pooler"
    projects = encoder.kind == "projected" and not pools
    methods = {"image": "forward"}
    if projects:
        towers = ("image", "text") if encoder.has_text else ("image",)
        methods = {tower: f"get_{tower}_features" for tower in towers}
    output = "last_hidden_state" if pools else "pooler_output"
    settings: dict[str, Any] = {
        "transformer_task": "feature-extraction",
        # Pixels cut by Pillow are those that the model was measured with.
        "processor_kwargs": {"backend": "pil"},
        "module_output_name": "token_embeddings" if pools else "sentence_embedding",
        "modality_config": {
            kind: {"method": method, "method_output_name": output}
            for kind, method in methods.items()
        },
    }
    if projects and encoder.backbone.config.model_type in _PADS_TO_THE_END:
        length = encoder.backbone.config.text_config.max_position_embeddings
        text = {"padding": "max_length", "max_length": length, "truncation": True}
        settings["processing_kwargs"] = {"text": text}
    return settings


def _embed(folder: Path, encoder: CLIPEncoder, images: Sequence[Image.Image]) -> Embeddings:
    from sentence_transformers import SentenceTransformer

    try:
        with quiet_transformers():
            model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    except (OSError, ValueError, TypeError, ImportError, KeyError) as error:
        raise ModelError(
            f"sentence-transformers cannot load {encoder.model_name} once exported: "
            f"{first_line(error)}"
        ) from error
    rows = model.encode(list(images), convert_to_numpy=True, show_progress_bar=False)
    return np.asarray(rows, dtype=np.float32)


SENTENCE_TRANSFORMERS = Form(
    save_sentence_transformers,
    _embed,
    tolerance=1e-4,
    extra="sentence-transformers",
    modules=("sentence_transformers", "sentence_transformers.base.modules.transformer"),
    needs="sentence-transformers needs its release 5.4 or newer",
)
