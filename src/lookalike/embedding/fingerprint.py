"""What decides on an embedding, as one hash by which embeddings of another model are refused."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from lookalike.model.encoder import CLIPEncoder
from lookalike.model.lora import merged_state

EMBEDDING_VERSION = 2
"""Raised whenever our code gives the same weights and images other embeddings, beyond rounding."""

# Settings of a vision model that do not change its embeddings, or show in its weights.
_NO_MATTER = re.compile(
    "_.*|.*(dropout|drop_path|layerdrop|initializer|dtype|label).*|architectures|problem_type"
    "|transformers_version|projection_dim|output_(attentions|hidden_states)|return_dict|use_cache"
    "|chunk_size_feed_forward|is_encoder_decoder"
    "|down_ops"  # LeViT's, which follow from others, and grow each time it is built
)


def fingerprint_of(encoder: CLIPEncoder) -> str:
    """Returns the hash that `Embedder.fingerprint` describes."""
    # What projects by itself in its forward pass is not pooled by us.
    pools = encoder.kind != "projected" or hasattr(encoder.backbone, "get_image_features")
    pool = encoder.description()["pool"] if pools else "pooler"
    config = encoder.backbone.config
    vision = getattr(config, "vision_config", None) or config
    facts = {
        "version": EMBEDDING_VERSION,
        "kind": encoder.kind,
        "pool": pool,
        "preprocessing": encoder.preprocessing.facts(),
        "settings": _settings_of(vision),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    seen = {name for name, _ in encoder.vision_parameters()}
    unseen = {name for name, _ in encoder.named_parameters() if name not in seen}
    with torch.no_grad():
        for name, tensor in merged_state(encoder):
            # Running statistics count. A pooler that is passed by is random in each process.
            passed_by = name in unseen or (pool != "pooler" and "pooler" in name)
            if passed_by or not tensor.is_floating_point():
                continue
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            values = whole.detach().float().cpu().numpy().astype("<f4", copy=False)
            digest.update(f"{name} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).reshape(-1).data)
    return digest.hexdigest()[:16]


def _settings_of(config: Any) -> dict[str, Any]:
    """Returns the settings of a vision model that its embeddings depend on, and its type.

    Of those that its class knows, which are less than old files have, only what is not its
    default, as later releases of Transformers know more.
    """
    default = type(config)().to_dict()
    return {
        name: value
        for name, value in config.to_dict().items()
        if name == "model_type"
        or (name in default and value != default[name] and not _NO_MATTER.fullmatch(name))
    }
