"""A model's preprocessing, read from its own processor configuration; patches and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from PIL import Image

from lookalike.data.transforms import Preprocessing
from lookalike.errors import ConfigError, ModelError, first_line
from lookalike.files import shown
from lookalike.model.loading import schema

_BICUBIC = 3  # Pillow's number, which processor configurations use
_CONVNEXT_WARPS_FROM_PX = 384
_STEP_WITHOUT_PATCHES_PX = 32  # by which convolutional models shrink an image, as a rule
_MOST_PX = 16_384
_px = schema.nothing_or(schema.whole(1, _MOST_PX))


def _size(value: Any, where: str) -> None:
    """Px of a square, or sides by name: those of other models stand in it as None."""
    sides = schema.mapping_of(schema.text(most=100), _px)
    (sides if isinstance(value, Mapping) else _px)(value, where)


def _one_or_three(value: Any, where: str) -> None:
    is_list = isinstance(value, (list, tuple))
    (schema.list_of(schema.number()) if is_list else schema.number())(value, where)


def _nonzero(value: Any, where: str) -> None:
    _one_or_three(value, where)
    if 0 in (value if isinstance(value, (list, tuple)) else [value]):
        raise schema.MisfitError(f"{where} is 0, by which pixels are divided")


def _filter(value: Any, where: str) -> None:
    """Pillow's number of a filter, which it has an enumeration of as well."""
    schema.whole(0, 5)(int(value) if isinstance(value, Image.Resampling) else value, where)


_settings = schema.record(
    {},
    {
        "size": _size,
        "crop_size": _size,
        "crop_pct": schema.nothing_or(schema.number(above=0)),
        "resample": schema.nothing_or(_filter),
        "rescale_factor": schema.nothing_or(schema.number(above=0)),
        "image_mean": schema.nothing_or(_one_or_three),
        "image_std": schema.nothing_or(_nonzero),
    },
    open=True,
)


def preprocessing_from(processor: Mapping[str, Any], model_name: str) -> Preprocessing:
    """Returns the preprocessing that an image processor's whole configuration describes.

    Raises:
        ModelError: the configuration asks for something else than one resize to a fixed size,
            perhaps with a centre crop (tiles, patches of varying number, padding); or holds
            something that is no size, filter or number.
    """
    try:
        _settings(processor, "")
    except schema.MisfitError as error:
        raise ModelError(
            f"the processor of {model_name} has settings that cannot be: {error}; copy the "
            "preprocessor_config.json of the model that it was made from"
        ) from error
    kind = str(processor.get("image_processor_type", "image processor"))
    size = {name: value for name, value in _as_size(processor.get("size")).items() if value}
    crop = _as_size(processor.get("crop_size")) if processor.get("do_center_crop") else {}
    if not processor.get("do_resize", True) or processor.get("do_pad"):
        raise ModelError(_unsupported(model_name, kind, "images of varying size"))

    shortest: int | None = None
    if set(size) == {"shortest_edge"}:
        shortest = int(size["shortest_edge"])
        if kind.startswith("ConvNext"):  # cuts off a margin below 384 px, warps from there on
            target = shortest, shortest
            share = float(processor.get("crop_pct") or 224 / 256)
            shortest = int(shortest / share) if shortest < _CONVNEXT_WARPS_FROM_PX else None
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

    normalises, rescales = processor.get("do_normalize", True), processor.get("do_rescale", True)
    resample = processor.get("resample")
    return Preprocessing(
        *target,
        shortest_edge=shortest,
        resample=_BICUBIC if resample is None else int(resample),
        scale=float(processor.get("rescale_factor") or 1 / 255) if rescales else 1.0,
        mean=_three(processor, "image_mean", model_name) if normalises else (0.0, 0.0, 0.0),
        std=_three(processor, "image_std", model_name) if normalises else (1.0, 1.0, 1.0),
    )


def check_whole_patches(config: Any, side: int) -> None:
    """Raises ConfigError, which names the sizes nearby, if patches do not fill a square of `side`
    px; a model without attention has no patches in this sense.
    """
    patch = patch_px(config)
    if patch is not None and side % patch:
        below = side // patch * patch
        nearest = f"{below} or {below + patch}" if below else f"{patch}"
        raise ConfigError(
            f"train_size is {side} px, and the model cuts images into patches of {patch} px; "
            f"set it to {nearest}"
        )


def share_of_side(config: Any, side: int, share: float) -> int:
    """Returns the px nearest to a share of a model's own `side` that are cut into whole patches.

    Halfway between two the larger one is taken, and one patch is the least. A model without
    patches gets a multiple of 32 px. A share of 1 is `side` itself.
    """
    if share == 1:
        return side
    step = patch_px(config) or _STEP_WITHOUT_PATCHES_PX
    return max(1, int(side * share / step + 0.5)) * step


def patch_px(config: Any) -> int | None:
    """Returns the side of the patches that attention sees; None for a model without."""
    vision = getattr(config, "vision_config", config)
    patch = getattr(vision, "patch_size", None)
    return patch if isinstance(patch, int) and hasattr(vision, "num_attention_heads") else None


def num_patches(config: Any, height: int, width: int) -> int | None:
    """Returns the number of patches of an image of a size in px; None for a model without."""
    patch = patch_px(config)
    return None if patch is None else (height // patch) * (width // patch)


# What a model's own code raises for images that it was not built for, or a configuration that
# contradicts itself.
FAILS_IN_A_PASS = (ValueError, RuntimeError, TypeError, IndexError, ArithmeticError)


def no_embedding(error: Exception, encoder: Any) -> Exception:
    """Returns what to raise where a model fails with an image that its processor prepared."""
    if isinstance(error, torch.OutOfMemoryError):
        return error
    config, how = encoder.backbone.config, encoder.preprocessing
    why = _why_no_embedding(config, how, encoder.model_name)
    return ModelError(f"{why} ({shown(first_line(error))})")


def _why_no_embedding(config: Any, how: Preprocessing, model_name: str) -> str:
    """Returns what of the configurations of a model and its processor disagrees, in words."""
    vision = getattr(config, "vision_config", None) or config
    channels, size = getattr(vision, "num_channels", 3), getattr(vision, "image_size", None)
    sides = size if isinstance(size, (list, tuple)) else (size, size)
    if channels != 3:
        return (
            f"{model_name} takes images of {channels} channels (num_channels in its config.json), "
            "and photographs have 3; take another model"
        )
    if size is not None and tuple(sides) != (how.height, how.width):
        return (
            f"the processor of {model_name} prepares images of {how.width}x{how.height} px "
            f"(preprocessor_config.json), and the model takes {sides[-1]}x{sides[0]} px "
            "(image_size in config.json); copy the preprocessor_config.json of the model that it "
            "was made from"
        )
    return (
        f"{model_name} does not embed an image of {how.width}x{how.height} px with 3 channels, "
        "as its preprocessor_config.json prepares it; copy config.json and "
        "preprocessor_config.json of the model that it was made from"
    )


def _as_size(size: Any) -> dict[str, Any]:
    """Returns a size as a mapping; old configurations hold a bare number for a square."""
    return {"height": size, "width": size} if isinstance(size, int) else dict(size or {})


def _three(processor: Mapping[str, Any], name: str, model_name: str) -> tuple[float, float, float]:
    """Returns one number a channel; a single number counts for all three."""
    values: Any = processor.get(name)
    if values is None:
        raise ModelError(
            f"the processor of {model_name} normalises by {name}, which its "
            "preprocessor_config.json does not name; copy that of the model it was made from"
        )
    if isinstance(values, (int, float)):
        values = [values] * 3
    if len(values) != 3:
        raise ModelError(
            f"expected 3 colour channels, and the processor of {model_name} prepares {len(values)} "
            f"({name}); take another model, or its own preprocessor_config.json"
        )
    return cast(tuple[float, float, float], tuple(float(value) for value in values))


def _unsupported(model_name: str, kind: str, what: str) -> str:
    return (
        f"{model_name} prepares its images in a way that is not supported ({kind}: {what}); "
        "take a model with images of one fixed size, such as CLIP, SigLIP or DINOv2"
    )
