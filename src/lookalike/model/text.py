"""Texts to embeddings, by the text tower that a model keeps beside its vision tower."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

from lookalike.errors import ModelError, first_line
from lookalike.files import shown
from lookalike.model.encoder import CLIPEncoder, evaluation_mode
from lookalike.progress import Progress

TEXTS_AT_A_TIME = 256
_NUMBERED = re.compile(r"\d+\.(?=\D)")  # 001.Black_footed_Albatross, as in CUB-200


def caption_of(label: str, template: str) -> str:
    """Returns the text that stands for a class: its name in words, put where `{}` stands.

    A leading number and dot is left out, and underscores become spaces; hyphens only in names that
    have no other gap. Case is kept, for names such as BMW: where a model learned lower case only,
    its tokenizer or `embed_texts` sees to it.

    >>> caption_of("Golden-Delicious", "a photo of a {}.")
    'a photo of a Golden Delicious.'
    >>> caption_of("001.red_t-shirt", "{}")
    'red t-shirt'
    """
    name = _encodable(label)
    words = name[found.end() :] if (found := _NUMBERED.match(name)) else name
    if not re.search(r"[_\s]", words):
        words = words.replace("-", " ")
    words = " ".join(words.replace("_", " ").split())
    return template.replace("{}", words or name)


def _encodable(text: str) -> str:
    """Returns a text that tokenizers take: a folder's name may hold bytes that are not text."""
    return text.encode("utf-8", "replace").decode("utf-8")


def embed_texts(
    encoder: CLIPEncoder,
    texts: Sequence[str],
    *,
    progress: Progress,
    title: str = "embedding captions",
) -> Float32[Tensor, "texts dim"]:
    """Returns L2-normalised embeddings of texts, in the space of the encoder's images, on the CPU.

    In float32 and evaluation mode. Texts longer than the model takes are cut. SigLIP and SigLIP 2
    learned with lower-cased texts, all padded to one length and none of the padding masked
    (Zhai et al., ICCV 2023; Transformers' notes on both models); the others pad as they need.

    Raises:
        ModelError: the encoder has no text (`why_no_text`), or its tokenizer cannot be built.
    """
    if encoder.why_no_text is not None:
        raise ModelError(f"texts cannot be embedded: {encoder.why_no_text}")
    rows = []
    with (
        evaluation_mode(encoder),
        torch.inference_mode(),
        progress.task(title, len(texts), "texts") as task,
    ):
        for start in range(0, len(texts), TEXTS_AT_A_TIME):
            some = [_encodable(text) for text in texts[start : start + TEXTS_AT_A_TIME]]
            pooled = _pooled_texts(encoder, some)
            rows.append(functional.normalize(pooled.float(), dim=-1).cpu())
            task.advance(len(some))
    return torch.cat(rows)  # outside of inference mode, so that a loss may use it


def _pooled_texts(encoder: CLIPEncoder, texts: list[str]) -> Tensor:
    """Returns what the text tower gives, before normalisation."""
    tokenizer = encoder.tokenizer
    try:
        inputs = _tokens(tokenizer, texts, encoder.backbone.config)
        moved = {name: tensor.to(encoder.device) for name, tensor in inputs.items()}
        output: Any = encoder.backbone.get_text_features(**moved)
    # A tower that is not of this tokenizer, or whose settings contradict each other.
    except (ValueError, RuntimeError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelError(
            f"the text tower of {shown(encoder.model_name)} does not embed what its tokenizer "
            f"makes of a text ({shown(first_line(error))}); copy the files of the tokenizer from "
            "the model it was made from"
        ) from error
    pooled: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    if not bool(pooled.isfinite().all()):
        raise ModelError(
            f"the text tower of {shown(encoder.model_name)} gives embeddings that are no numbers: "
            "its weights are damaged; download the model again"
        )
    return pooled


def _tokens(tokenizer: Any, texts: list[str], config: Any) -> dict[str, Tensor]:
    """Returns the arguments of `get_text_features`."""
    is_siglip = str(config.model_type).startswith("siglip")
    inputs = tokenizer(
        [text.lower() for text in texts] if is_siglip else texts,
        padding="max_length" if is_siglip else True,
        truncation=True,
        max_length=config.text_config.max_position_embeddings,
        return_tensors="pt",
    )
    return {"input_ids": inputs["input_ids"]} if is_siglip else dict(inputs)
