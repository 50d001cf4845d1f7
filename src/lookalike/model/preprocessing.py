"""What a model wants done to its images, read from its own processor configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from lookalike.data.transforms import Preprocessing
from lookalike.errors import ConfigError, ModelError

_BICUBIC = 3  # Pillow's number, which processor configurations use
_CONVNEXT_WARPS_FROM_PX = 384
_STEP_WITHOUT_PATCHES_PX = 32  # by which convolutional models shrink an image, as a rule


def preprocessing_from(processor: Mapping[str, Any], model_name: str) -> Preprocessing:
    """The cut and scale of pixels that an image processor's configuration describes.

    Args:
        processor: the processor's whole configuration, class defaults filled in.
        model_name: for error messages.

    Raises:
        ModelError: the configuration asks for something else than one resize to a fixed size,
            perhaps with a centre crop (tiles, patches of varying number, padding).
    """
    kind = str(processor.get("image_processor_type", "image processor"))
    size = {name: value for name, value in _as_size(processor.get("size")).items() if value}
    crop = _as_size(processor.get("crop_size")) if processor.get("do_center_crop") else {}
    if not processor.get("do_resize", True) or processor.get("do_pad"):
        raise ModelError(_unsupported(model_name, kind, "images of varying size"))

    shortest: int | None = None
    if set(size) == {"shortest_edge"}:
        shortest = int(size["shortest_edge"])
        if kind.startswith("ConvNext"):
            shortest, target = _convnext(shortest, float(processor.get("crop_pct") or 224 / 256))
        elif {"height", "width"} <= set(crop):
            target = int(crop["height"]), int(crop["width"])
        else:
            raise ModelError(_unsupported(model_name, kind, "no centre crop"))
    elif set(size) == {"height", "width"}:
        target = int(size["height"]), int(size["width"])
        if crop and (int(crop["height"]), int(crop["width"])) != target:
            raise ModelError(_unsupported(model_name, kind, "an exact resize and then a crop"))
    else:
        raise ModelError(_unsupported(model_name, kind, f"size {size or 'that varies'}"))

    normalises = processor.get("do_normalize", True)
    resample = processor.get("resample")
    return Preprocessing(
        height=target[0],
        width=target[1],
        shortest_edge=shortest,
        resample=_BICUBIC if resample is None else int(resample),
        scale=float(processor.get("rescale_factor") or 1 / 255)
        if processor.get("do_rescale", True)
        else 1.0,
        mean=_three(processor["image_mean"]) if normalises else (0.0, 0.0, 0.0),
        std=_three(processor["image_std"]) if normalises else (1.0, 1.0, 1.0),
    )


def check_whole_patches(config: Any, side: int) -> None:
    """Sees to it that a square image is cut into patches with nothing left over.

    Args:
        config: of a Transformers model; one without attention has no patches in this sense.
        side: of the image, in px.

    Raises:
        ConfigError: something is left over; names the sizes nearby.
    """
    patch = patch_px(config)
    if patch is None:
        return
    below = side // patch * patch
    if side != below:
        nearest = f"{below} or {below + patch}" if below else f"{patch}"
        raise ConfigError(
            f"train_size is {side} px, and the model cuts images into patches of {patch} px; "
            f"set it to {nearest}"
        )


def share_of_side(config: Any, side: int, share: float) -> int:
    """The side in px nearest to a share of a model's own that is cut into whole patches.

    Halfway between two the larger one is taken, and one patch is the least. A model without
    patches gets a multiple of 32 px.

    Args:
        config: of a Transformers model.
        side: the model's own, in px.
        share: above 0, at most 1, which is `side` itself.
    """
    if share == 1:
        return side
    step = patch_px(config) or _STEP_WITHOUT_PATCHES_PX
    return max(1, int(side * share / step + 0.5)) * step


def patch_px(config: Any) -> int | None:
    """Side of the patches that attention sees; None for a model without."""
    vision = getattr(config, "vision_config", config)
    patch = getattr(vision, "patch_size", None)
    return patch if isinstance(patch, int) and hasattr(vision, "num_attention_heads") else None


def num_patches(config: Any, height: int, width: int) -> int | None:
    """Returns the number of patches of an image of a size in px; None for a model without."""
    patch = patch_px(config)
    return None if patch is None else (height // patch) * (width // patch)


def _convnext(shortest: int, crop_pct: float) -> tuple[int | None, tuple[int, int]]:
    """ConvNeXT's own rule: below 384 px a margin is cut off, from there on images are warped."""
    resized = int(shortest / crop_pct) if shortest < _CONVNEXT_WARPS_FROM_PX else None
    return resized, (shortest, shortest)


def _as_size(size: Any) -> dict[str, Any]:
    """A size as a mapping; old configurations hold a bare number for a square."""
    if isinstance(size, int):
        return {"height": size, "width": size}
    return dict(size or {})


def _three(values: Any) -> tuple[float, float, float]:
    """One number a channel; a single number counts for all three."""
    if isinstance(values, (int, float)):
        values = [values] * 3
    if len(values) != 3:
        raise ModelError(f"expected 3 colour channels, the model takes {len(values)}")
    return cast(tuple[float, float, float], tuple(float(value) for value in values))


def _unsupported(model_name: str, kind: str, what: str) -> str:
    return (
        f"{model_name} prepares its images in a way that is not supported ({kind}: {what}); "
        "take a model with images of one fixed size, such as CLIP, SigLIP or DINOv2"
    )
