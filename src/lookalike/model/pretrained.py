"""Loading a model by name: from the hub, from a folder, from our checkpoints. See `loading/`."""

from lookalike.model.loading.checkpoint import (
    CHECKPOINT_FORMAT,
    check_content,
    chosen_embedding,
    from_checkpoint,
    is_checkpoint,
    misfit_of,
    not_finite,
    read_checkpoint,
)
from lookalike.model.loading.folder import Pretrained, load_pretrained
from lookalike.model.loading.side_files import has_tokenizer, load_tokenizer, write_side_files
from lookalike.model.loading.transformers import quiet_transformers

__all__ = [
    "CHECKPOINT_FORMAT",
    "Pretrained",
    "check_content",
    "chosen_embedding",
    "from_checkpoint",
    "has_tokenizer",
    "is_checkpoint",
    "load_pretrained",
    "load_tokenizer",
    "misfit_of",
    "not_finite",
    "quiet_transformers",
    "read_checkpoint",
    "write_side_files",
]
