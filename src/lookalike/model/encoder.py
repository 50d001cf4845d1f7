"""`CLIPEncoder`: one embedding an image, from CLIP or any vision backbone like it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn
from torch.nn import functional

from lookalike.config import DEFAULT_MODEL
from lookalike.data.transforms import Preprocessing
from lookalike.errors import CheckpointError, ModelError, first_line
from lookalike.files import shown
from lookalike.model.preprocessing import (
    FAILS_IN_A_PASS,
    check_whole_patches,
    no_embedding,
    num_patches,
    patch_px,
    share_of_side,
)
from lookalike.model.pretrained import (
    chosen_embedding,
    from_checkpoint,
    has_tokenizer,
    is_checkpoint,
    load_pretrained,
    load_tokenizer,
    misfit_of,
    not_finite,
    read_checkpoint,
)

# Parts of a two-tower model that an image never passes through; kept for text search, frozen.
_NOT_VISION = ("text_model.", "text_projection.", "logit_scale", "logit_bias")
Pixels: TypeAlias = UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]
_SAME = 1e-4  # by which no number of two embeddings of one image may differ; rounding is 1e-7
_SMALL = 6  # patches a side of an image that costs a large model next to nothing


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Switches dropout and the like off inside the block; afterwards all is as before."""
    in_training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in in_training:
            part.training = True


class CLIPEncoder(nn.Module):
    """Wraps a vision backbone: pixels in, L2-normalised float32 embeddings out.

    The backbone is CLIP, SigLIP or SigLIP2 with its text tower kept (frozen, for text search),
    or a vision-only model such as DINOv2, chosen from the model's own configuration. Weights
    are float32 whatever precision they were saved in.

    A model without pooled output of its own (or without the weights for it) gives its class token,
    the first; one without a class token, such as I-JEPA, the mean of its patches' tokens.

    >>> encoder = CLIPEncoder("openai/clip-vit-base-patch32")   # doctest: +SKIP
    >>> embeddings = encoder(pixels)                            # doctest: +SKIP

    Args:
        model_name: a hub id, a local Transformers folder, or a Lookalike checkpoint.
        embedding: "projected", the space shared with text, where the model has one (otherwise
            the same as "pooled"); "pooled", what the vision tower gives before projection; or
            "auto", the one that a Lookalike checkpoint was trained for, else "projected".
        gradient_checkpointing: recompute activations in the backward pass, to save memory.
        checkpoint: the content of the checkpoint `model_name`, where it was read already.

    It starts in evaluation mode (no dropout), as `from_pretrained` models do.

    Raises:
        ModelError: the model cannot be loaded, is no vision model, or embeds one image
            differently each time.
        CheckpointError: `model_name` is a file that is not a whole Lookalike checkpoint.
    """

    def __init__(
        self,
        model_name: str = DEFAULT_MODEL,
        *,
        embedding: Literal["auto", "projected", "pooled"] = "auto",
        gradient_checkpointing: bool = False,
        checkpoint: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model_name = model_name
        self.epoch = 0  # of the checkpoint it was loaded from
        self.trained_on: frozenset[str] = frozenset()  # classes, where a checkpoint tells
        self.frozen_parts: list[nn.Module] = []  # that training leaves in evaluation mode
        self.patch_seed: tuple[tuple[int, ...], int] | None = None  # see `patches_drawn_by`
        if checkpoint is None and is_checkpoint(model_name):
            checkpoint = read_checkpoint(Path(model_name))
        self.embedding = chosen_embedding(embedding, checkpoint)
        loaded = from_checkpoint(checkpoint, model_name) if checkpoint else None
        self._source = loaded or load_pretrained(model_name)
        self.backbone: Any = self._source.backbone  # its class is known when it is loaded
        self.preprocessing = self._source.preprocessing
        self.side_files = self._source.side_files  # its configuration and tokenizer, by name
        self._mean: Tensor
        self._std: Tensor
        for name in ("mean", "std"):
            tensor = torch.tensor(getattr(self.preprocessing, name)).view(1, 3, 1, 1)
            self.register_buffer(f"_{name}", tensor, persistent=False)
        if checkpoint is not None:
            self.load_weights(checkpoint["model_state_dict"], model_name)
            self.epoch = int(checkpoint["epoch"])
            self.trained_on = frozenset(checkpoint.get("train_classes", ()))
        vision = {name for name, _ in self.vision_parameters()}
        for name, parameter in self.named_parameters():
            if name not in vision:
                parameter.requires_grad_(False)
        if gradient_checkpointing:
            self._checkpoint_gradients()
        self.eval()
        if checkpoint is None:
            self._settle_pool()

    def forward(self, pixels: Pixels) -> Float32[Tensor, "batch dim"]:
        """Embeds a batch of images; of another size than the model's own where the model can, by
        interpolating its position embeddings.

        Args:
            pixels: values 0..255 as `preprocess` cuts them (uint8); or, floating, the
                `pixel_values` of the model's Transformers processor, already normalised.

        Raises:
            ModelError: the backbone does not give one row of numbers an image.
        """
        return self._embeddings(self._output(self.normalised(pixels)))

    def normalised(self, pixels: Pixels) -> Float[Tensor, "batch 3 height width"]:
        """Returns pixels as the backbone takes them; floating ones are so already."""
        if pixels.dtype != torch.uint8:
            return pixels
        return (pixels.float() * self.preprocessing.scale - self._mean) / self._std

    def train_side(self, train_size: float | None) -> int | None:
        """Returns the side in px that a `train_size` means for this model; None is the model's own.

        Up to 1 it is a share of the model's own side, which becomes a whole number of patches (of
        32 px where the model has none); above 1 it is in px.
        """
        if train_size is None:
            return None
        if train_size > 1:
            return int(train_size)
        return share_of_side(self.backbone.config, self.preprocessing.height, train_size)

    def preprocessing_at(self, side: int) -> Preprocessing:
        """Returns the preprocessing that makes squares of `side` px for this model.

        Raises:
            ConfigError: `side` is no multiple of the model's patch.
            ModelError: the model cannot take images of that size.
        """
        how = self.preprocessing
        if side == how.height == how.width:
            return how
        if how.height != how.width:
            raise ModelError(
                f"{self.model_name} takes images of {how.width}x{how.height} px, which are not "
                "square; leave train_size out"
            )
        check_whole_patches(self.backbone.config, side)
        try:
            self._dim_at(side, side)
        except (ValueError, RuntimeError) as error:
            raise ModelError(
                f"{self.model_name} cannot take images of {side}x{side} px ({first_line(error)}); "
                f"leave train_size out, and it learns from images of {how.width}x{how.height} px"
            ) from error
        return how.at(side)

    @property
    def title(self) -> str:
        """The name it was loaded by, as one printable line, and what was merged to make it."""
        base = self._source.adapted
        merged = f" (a LoRA adapter, merged into {shown(base)})" if base is not None else ""
        return f"{shown(self.model_name)}{merged}"

    @property
    def kind(self) -> str:
        """The embedding this encoder really gives: "projected" or "pooled"."""
        names = ("get_image_features", "visual_projection")
        projects = any(hasattr(self.backbone, name) for name in names)
        return "projected" if projects and self.embedding == "projected" else "pooled"

    @property
    def has_text(self) -> bool:
        """True if texts can be embedded beside images, with `lookalike.model.text`."""
        return self.why_no_text is None

    @property
    def why_no_text(self) -> str | None:
        """The reason why texts cannot be embedded beside images; None where they can."""
        if not hasattr(self.backbone, "get_text_features"):
            return f"{self.model_name} has no text tower"
        if self.embedding != "projected":
            return "pooled embeddings are not in the space that texts are in; use projected ones"
        if not has_tokenizer(self.side_files):
            return f"{self.model_name} came without the files of its tokenizer"
        return None

    @cached_property
    def tokenizer(self) -> Any:
        """Returns the tokenizer of the text tower; raises a `ModelError` if it cannot be built."""
        return load_tokenizer(self.side_files, self.model_name, self._source.folder)

    @cached_property
    def dim(self) -> int:
        """The length of an embedding; found by embedding one black image of the model's own size.

        It raises ModelError where the model does not embed what its processor prepares.
        """
        height, width = self.preprocessing.height, self.preprocessing.width
        try:
            return self._dim_at(height, width)
        except FAILS_IN_A_PASS as error:
            raise no_embedding(error, self) from error

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self._mean.device

    def vision_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields names and parameters that an image's embedding depends on."""
        unused = _NOT_VISION + (("visual_projection.",) if self.embedding == "pooled" else ())
        for name, parameter in self.named_parameters():
            if not name.removeprefix("backbone.").startswith(unused):
                yield name, parameter

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields names and parameters that fine-tuning changes: the vision side's, less frozen."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    def train(self, mode: bool = True) -> CLIPEncoder:
        """Switches dropout and the like on or off; in frozen parts they stay off."""
        super().train(mode)
        for part in self.frozen_parts:
            part.training = False
        return self

    def description(self) -> dict[str, Any]:
        """Returns all that it takes, beside the weights, to build this encoder again."""
        return {"embedding": self.embedding, **self._source.description()}

    def load_weights(self, state: dict[str, Tensor], path: str) -> None:
        """Loads a checkpoint's `model_state_dict`; raises CheckpointError where it does not fit, or
        holds what is no finite number.
        """
        misfit = misfit_of(state, self.state_dict())
        if misfit is None and (name := not_finite(state)) is not None:
            misfit = f"{name} holds what is no finite number"
        if misfit is not None:
            raise CheckpointError(
                f"the weights in {shown(path)} do not fit {self.model_name}: {misfit}"
            )
        self.load_state_dict(state)

    def _dim_at(self, height: int, width: int) -> int:
        """Returns the length of the embedding of an image of a size."""
        black = torch.zeros(1, 3, height, width, dtype=torch.uint8, device=self.device)
        # Not inference_mode: sharded weights put together in it could not be trained afterwards.
        with evaluation_mode(self), torch.no_grad():
            return int(self(black).shape[1])

    def _settle_pool(self) -> None:
        """Looks at one image twice: how its tokens become an embedding, and that it stays one."""
        # Once and for all: patches may be left out later, and their number is what tells.
        own = self.preprocessing.height, self.preprocessing.width
        patch = patch_px(self.backbone.config)
        height, width = own if patch is None else (min(side, _SMALL * patch) for side in own)
        try:
            outputs = self._outputs_for_one_image(height, width)
        except FAILS_IN_A_PASS:  # it takes no other size than its own
            height, width = own
            try:
                outputs = self._outputs_for_one_image(height, width)
            except FAILS_IN_A_PASS as error:
                raise no_embedding(error, self) from error
        patches = num_patches(self.backbone.config, height, width)
        self._source = replace(self._source, pool=self._pool_of(outputs[0], patches))
        first, second = (self._embeddings(output) for output in outputs)
        difference = float((first - second).abs().max())
        if math.isnan(difference):
            raise ModelError(
                f"{self.model_name} gives embeddings that are no numbers: its weights are damaged"
            )
        if difference > _SAME:
            raise ModelError(
                f"{self.model_name} ({self.backbone.config.model_type}) embeds one image "
                f"differently each time: a number of two embeddings of it differs by "
                f"{difference:.1e}, expected at most {_SAME:.0e}. Take another model; a ViT-MAE, "
                'which hides patches at random, is a plain one with "model_type": "vit" in its '
                "config.json"
            )

    @torch.no_grad()
    def _outputs_for_one_image(self, height: int, width: int) -> list[Any]:
        slope = torch.linspace(-1, 1, 3 * height * width).view(1, 3, height, width)
        return [self._output(slope) for _ in range(2)]

    def _pool_of(self, output: Any, patches: int | None) -> str:
        """Returns the pooling of the output into an embedding, as `Pretrained.pool` has it."""
        has_pooler = getattr(output, "pooler_output", None) is not None
        tokens = getattr(output, "last_hidden_state", None)
        if tokens is None or (has_pooler and self._source.pool == "pooler"):
            return "pooler"
        has_class_token = patches is None or tokens.ndim != 3 or tokens.shape[1] > patches
        return "cls" if has_class_token else "mean"

    def _output(self, pixels: Float[Tensor, "batch 3 height width"]) -> Any:
        """Calls the backbone with normalised images."""
        tower_name = "get_image_features" if self.embedding == "projected" else "vision_model"
        tower = getattr(self.backbone, tower_name, self.backbone)
        how, name = self.preprocessing, "interpolate_pos_encoding"
        if pixels.shape[2:] == (how.height, how.width):
            return tower(pixel_values=pixels)
        forward = tower.forward if isinstance(tower, nn.Module) else tower
        can_interpolate = name in inspect.signature(forward).parameters
        return tower(pixel_values=pixels, **({name: True} if can_interpolate else {}))

    def _embeddings(self, output: Any) -> Float32[Tensor, "batch dim"]:
        """Returns one row an image, of length 1."""
        pooled = self._pooled(output)
        if pooled.ndim == 4 and pooled.shape[2:] == (1, 1):  # convolutional backbones
            pooled = pooled.flatten(1)
        if pooled.ndim != 2:
            raise ModelError(
                f"{self.model_name} gives {tuple(pooled.shape[1:])} numbers an image, "
                "not one embedding; take another model"
            )
        return functional.normalize(pooled.float(), dim=-1)

    def _pooled(self, output: Any) -> Any:
        """Returns one row an image, before normalisation."""
        if isinstance(output, Tensor):
            return output
        if getattr(output, "image_embeds", None) is not None:
            return output.image_embeds
        if getattr(output, "pooler_output", None) is not None and self._source.pool == "pooler":
            return output.pooler_output
        tokens = getattr(output, "last_hidden_state", None)
        if tokens is None:
            raise ModelError(
                f"{self.model_name} ({self.backbone.config.model_type}) gives neither tokens nor a "
                "pooled output, of which an embedding could be made; take another model"
            )
        return tokens.mean(dim=1) if self._source.pool == "mean" else tokens[:, 0]

    def _checkpoint_gradients(self) -> None:
        if not self.backbone.supports_gradient_checkpointing:
            raise ModelError(
                f"{self.model_name} has no gradient checkpointing; leave it off and make the "
                "batch smaller"
            )
        # Re-entrant checkpointing loses gradients when the pixels themselves need none.
        new_name = hasattr(self.backbone, "activation_checkpointing_enable")  # from 5.23 on
        name = "activation" if new_name else "gradient"
        getattr(self.backbone, f"{name}_checkpointing_enable")({"use_reentrant": False})
