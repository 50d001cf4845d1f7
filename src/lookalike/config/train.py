"""The options of `lookalike train`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from lookalike.config.groups import BatchShape, Common
from lookalike.config.options import option, same_option
from lookalike.errors import ConfigError

_LEAST_PX = 8  # of a training image's side
_batches = partial(option, group="Batches")
_augmentation = partial(option, group="Augmentation")
_objective = partial(option, group="Objective")
_training = partial(option, group="Training")
_text_search = partial(option, group="Text search")
_checkpoints = partial(option, group="Checkpoints")
_tracking = partial(option, group="Tracking")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(BatchShape, Common):
    """All that `lookalike train` can be told.

    Raises:
        ConfigError: a value is out of its range, or two of them contradict each other.
    """

    precision: Literal["auto", "bf16", "fp16", "fp32"] = same_option(
        Common,
        "precision",
        help="the model's arithmetic; auto: bf16 where the device is fast at it, else fp16 with "
        "gradient scaling on a GPU, else fp32 (int8 is for embedding alone)",
    )
    train: str | None = option(
        None,
        "images to learn from: one folder per class, a table with labels, or shards",
        group="Training images",
    )
    class_balance: Literal["size", "equal"] = _batches(
        "size",
        "size: classes are sampled in proportion to their size; equal: all equally often, "
        "in an epoch of the same length",
    )
    singletons: Literal["exclude", "repeat"] = _batches(
        "exclude",
        "a class with one image has no pair to learn from: exclude it, or repeat its image "
        "K times, each differently augmented",
    )
    batch_memory: int | Literal["auto"] | None = _batches(
        "auto",
        "images whose activations are in memory at once: a larger batch goes through the model "
        "in chunks (gradient caching), which affects time, not results; auto: as many as fit; "
        "none: the whole batch",
        at_least=1,
        at_most=65_536**2,
    )
    augmentation: Literal["crop-flip", "none"] = _augmentation(
        "crop-flip",
        "crop-flip: a random crop of each image, mirrored half the time; none: the crop that "
        "evaluation uses",
    )
    min_crop_area: float = _augmentation(
        0.8, "smallest share of an image that crop-flip keeps", above=0, at_most=1
    )
    color_jitter: float = _augmentation(
        0.0,
        "change brightness, contrast and saturation by up to this share, with either augmentation; "
        "0.2 is light; 0: off",
        at_least=0,
        at_most=1,
    )
    train_size: float | None = _augmentation(
        None,
        "side of training images: up to 1, a share of the model's own, in whole patches, such as "
        "0.5; above 1, pixels, a multiple of the model's patch, such as 112; smaller images train "
        "faster; none: the model's own, which evaluation always uses",
        metavar="SIDE",
        above=0,
        at_most=10_000,
    )
    patch_dropout: float = _augmentation(
        0.0,
        "share of each image's patches, drawn anew each time, that training omits, which makes "
        "it faster by about as much; 0: off",
        at_least=0,
        at_most=0.9,
    )

    objective: str = _objective(
        "supcon",
        "supcon: supervised contrastive; arcface: a learned centre for each class, with a margin",
        metavar="supcon|arcface",
    )
    temperature: float = _objective(
        0.07,
        "temperature of the objective; the smaller, the more the hardest negatives count (the "
        "papers use 0.07 for supcon, 0.016 for arcface)",
        at_least=1e-4,
        at_most=100,
    )
    cross_batch_memory: int = _objective(
        0,
        "embeddings of earlier batches that supcon also compares with; 0: off",
        at_least=0,
        at_most=10_000_000,
        because="all of them are in memory, as float32",
    )
    margin: float = _objective(
        0.3, "margin of arcface, in radians; 0 is the normalised softmax", at_least=0, at_most=1.5
    )

    num_epochs: int = _training(1, "passes over the training images", at_least=0, at_most=1_000_000)
    learning_rate: float = _training(
        1e-7,
        "AdamW's learning rate; the default changes almost nothing, use 1e-5 to 5e-5",
        above=0,
        at_most=10,
    )
    layer_decay: float = _training(
        1.0,
        "factor by which the learning rate falls per layer, from last to first; 1: all the same",
        above=0,
        at_most=1,
    )
    schedule: Literal["constant", "cosine"] = _training(
        "constant", "learning rate after warm-up; cosine falls to zero"
    )
    warmup_steps: float = _training(
        0.0,
        "steps over which the learning rate rises from zero at first; below 1, a share of all "
        "steps, such as 0.1",
        metavar="N",
        at_least=0,
        at_most=1_000_000_000,
    )
    frozen_layers: int = _training(
        0,
        "how many of the first layers to freeze, along with the patch embedding",
        at_least=0,
        at_most=10_000,
    )
    lora_rank: int | None = _training(
        None,
        "train LoRA matrices of this rank instead of the weights; none: off",
        at_least=1,
        at_most=4096,
        because="layers are seldom wider, and a rank above their width adds nothing",
    )
    weight_decay: float = _training(
        0.01,
        "AdamW's weight decay; not on biases, norms, tokens and position embeddings",
        at_least=0,
        at_most=1000,
    )
    max_grad_norm: float | None = _training(
        1.0, "clip the gradient norm to this; none: off", above=0, at_most=1_000_000_000
    )
    gradient_checkpointing: bool = _training(
        False, "recompute activations in the backward pass: less memory, a third slower"
    )
    seed: int = _training(0, "random seed", at_least=0, at_most=2**63 - 1)

    caption_weight: float = _text_search(
        0.0,
        "weight of a second loss, beside the objective, that keeps images near the text of "
        "their class; 0: off",
        at_least=0,
        at_most=1_000_000,
    )
    distillation_weight: float = _text_search(
        0.0,
        "weight of a loss that keeps embeddings near the baseline's; 0: off",
        at_least=0,
        at_most=1_000_000,
    )
    interpolation: int = _text_search(
        0,
        "at the end, measure mixtures of the baseline's and the trained weights (WiSE-FT) in "
        "this many even steps, and save the best one; 0: off",
        at_least=0,
        at_most=100,
    )

    best_metric: str = _checkpoints(
        "mAP@R",
        "metric that picks the best epoch; text-mAP, text-recall@1, ... are of text search",
        metavar="METRIC",
    )
    patience: int | None = _checkpoints(
        None,
        "stop after N epochs without improvement on the best before them, the baseline included; "
        "none: never",
        at_least=1,
        at_most=1_000_000,
    )
    keep: int | Literal["all"] = _checkpoints(
        "all",
        "how many of the newest checkpoints to keep, besides the best",
        at_least=1,
        at_most=1_000_000,
    )
    autosave_minutes: float | None = _checkpoints(
        10.0,
        "minutes between saves within an epoch, to one file that --resume continues from; none: "
        "never",
        above=0,
        at_most=525_600,
    )

    sharding: Literal["none", "full"] = option(
        "none",
        "with several processes: each holds the whole model (none), or a part of it (full), for "
        "models that do not fit otherwise",
        group="Machine",
    )
    compile: Literal["auto", "on", "off"] = option(
        "auto",
        "have torch compile the model's layers, which takes up to a minute and makes steps on a "
        "GPU faster; auto: on one GPU, if training would take two minutes or more",
        group="Machine",
    )

    track: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"] = _tracking(
        "none",
        "where to log the run as well; trackers that write to the disk do so in tracking/ below "
        "out",
    )
    track_project: str = _tracking(
        "lookalike", "project or experiment to log it under", metavar="NAME"
    )
    track_optional: bool = _tracking(
        False, "train untracked if the tracker is not installed, not logged in or out of reach",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_size is not None and self.train_size > 1:
            object.__setattr__(self, "train_size", _whole_px(self.train_size))
        if self.warmup_steps >= 1:
            object.__setattr__(self, "warmup_steps", _whole_steps(self.warmup_steps))
        if self.sharding == "full" and self.compile == "on":
            raise ConfigError(
                "sharding is full, and compile is on, which needs the whole model in each process; "
                "leave one of them out"
            )
        if self.sharding == "full" and self.distillation_weight:
            raise ConfigError(
                "sharding is full, and distillation needs the whole baseline beside the model in "
                "training; set --sharding none"
            )
        size = self.n_classes_per_batch * self.n_samples_per_class
        if isinstance(self.batch_memory, int) and self.batch_memory > size:
            raise ConfigError(
                f"batch_memory is {self.batch_memory}, but a batch has {size} images "
                f"({self.n_classes_per_batch} classes x {self.n_samples_per_class}); set it to "
                f"{size} or less, or to auto"
            )


def _whole_px(side: float) -> int:
    if not side.is_integer() or side < _LEAST_PX:
        raise ConfigError(
            f"train_size is {side:g}; expected a share of the model's own side, above 0 and at "
            f"most 1, such as 0.5, or a whole number of pixels, {_LEAST_PX} or more, such as 112"
        )
    return int(side)


def _whole_steps(steps: float) -> int:
    if not steps.is_integer():
        raise ConfigError(
            f"warmup_steps is {steps:g}; expected a whole number of steps, or, below 1, a share "
            "of the run's, such as 0.1"
        )
    return int(steps)
