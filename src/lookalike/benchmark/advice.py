"""Reads a measurement of speed: what limits, and what to change. Functions of numbers alone.

Readers (reading, decoding, preprocessing) work beside each other, one core each; a batch goes to
the device and through the model as one. What a stage costs is the time that it adds to each
image if nothing else was under way. Whichever side costs more limits, and in it the stage that
costs most; on a CPU both sides take the same cores, and on a GPU the other side waits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lookalike.progress import counted

READERS = ("reading", "decoding", "preprocessing")
DEVICE = ("transfer", "model")
STAGES = (*READERS, *DEVICE)

SMALL_MODEL = "openai/clip-vit-base-patch32"
_SMALL_GIGAFLOPS = 8.8  # of that model for an image, a multiplication and an addition being two
_DRAFTED = ("JPEG", "MPO")  # files that are decoded at a fraction where exact pixels are off
_MUCH = 0.25  # of the time: a stage worth words, though it does not limit
_AS_GOOD = 0.99  # of the best
_WORTH_IT = 1.15  # times as fast, below which nothing is advised
_SHORT_BATCH_MS = 20.0  # below this a GPU mostly waits for the next piece of work
_LARGE_BATCH = 256


@dataclass(frozen=True)
class Stage:
    """Milliseconds that an image takes in one stage, of which so many go on at a time."""

    name: str
    median_ms: float
    mean_ms: float
    at_a_time: int = 1

    @property
    def cost_ms(self) -> float:
        """The milliseconds that it adds to each image."""
        return self.mean_ms / self.at_a_time

    @property
    def images_per_s(self) -> float | None:
        """As many as there would be with this stage alone; None where it takes no time."""
        return 1000 / self.cost_ms if self.cost_ms > 0 else None


@dataclass(frozen=True)
class Images:
    """The kinds of files that were measured.

    `formats` counts them as their bytes say. `oversized` counts, of each format, those that were
    decoded in full though half their size holds all that the model takes, which is `enough_px` on
    the shorter side. `large` are JPEG files that were decoded at a fraction, and would still be
    quicker as smaller copies.
    """

    num_found: int
    num_measured: int
    formats: dict[str, int]
    median_megapixels: float
    median_kilobytes: float
    oversized: dict[str, int]
    large: int
    enough_px: int
    exact: bool


@dataclass(frozen=True)
class Machine:
    """The machine that did the work; `better_device` is there besides, and was not used."""

    device: str
    precision: str
    fast_bf16: bool
    num_cores: int
    num_threads: int
    num_workers: int
    batch_size: int
    better_device: str | None = None
    fast_int8: bool = False  # where that was measured: VNNI, and no AMX, which is fast in bf16

    @property
    def is_cpu(self) -> bool:
        """True where the model takes the cores that the readers need."""
        return self.device == "cpu"


@dataclass(frozen=True)
class Speed:
    """Everything that was measured. `stages` are those of `STAGES`, in this order.

    `whole` is images a second from files to embeddings; `gigaflops` what the model computes for
    one of them.
    """

    stages: tuple[Stage, ...]
    whole: float
    gigaflops: float
    images: Images
    machine: Machine

    def stage(self, name: str) -> Stage:
        """Returns one of them by its name."""
        return next(one for one in self.stages if one.name == name)

    def cost_ms(self, *names: str) -> float:
        """Returns the milliseconds that these stages add to each image."""
        return sum(self.stage(name).cost_ms for name in names)

    def core_ms(self) -> float:
        """Returns the milliseconds that reading an image takes on one core."""
        return sum(self.stage(name).mean_ms for name in READERS)

    def shares(self) -> dict[str, float]:
        """Returns the share of all stages' time that each takes; they add up to 1."""
        total = self.cost_ms(*STAGES)
        return {name: self.cost_ms(name) / total for name in STAGES}

    @property
    def model_alone(self) -> float:
        """Images a second where pixels are on the device already."""
        return 1000 / self.stage("model").mean_ms

    @property
    def reached(self) -> float:
        """The share of that which the whole reaches."""
        return self.whole / self.model_alone

    @property
    def limit(self) -> str:
        """The stage that limits."""
        side = READERS if self.cost_ms(*READERS) > self.cost_ms(*DEVICE) else DEVICE
        return max(side, key=self.cost_ms)


def advice(speed: Speed) -> list[str]:
    """Returns what limits, and what to change, in sentences; the most useful first."""
    limit = {"transfer": "the transfer to the device", "model": "the model"}
    says = [
        f"The whole reaches {speed.reached:.0%} of what the model alone would; what limits is "
        f"{limit.get(speed.limit, speed.limit)}."
    ]
    if speed.reached > _WORTH_IT:
        says.append(
            "That cannot be: something else worked on this machine in the meantime. Measure again, "
            "for longer: --seconds 30."
        )
    if better_workers(speed) is not None or speed.limit in READERS:
        says.append(_workers(speed))
    if speed.limit == "transfer":
        says.append(
            "No flag makes the way to the device quicker. See whether something else uses it, and "
            "whether it sits in a slow slot."
        )
    elif speed.limit == "model":
        says += _quicker_model(speed)
    if sum(speed.shares()[name] for name in READERS) >= _MUCH:
        says += _lighter_files(speed)
    return says


def expected(speed: Speed, num_workers: int) -> float:
    """Returns images a second with so many readers: what both sides can do, and all the cores."""
    device_ms, core_ms = speed.cost_ms(*DEVICE), speed.core_ms()
    readers = num_workers * 1000 / core_ms
    if not speed.machine.is_cpu:
        return min(readers, 1000 / device_ms)
    cores = speed.machine.num_cores
    return min(readers, cores * 1000 / (core_ms + cores * device_ms))


def enough_workers(speed: Speed) -> int:
    """Returns how many readers keep up with the device, each with a core of its own."""
    return max(1, math.ceil(speed.core_ms() / speed.cost_ms(*DEVICE)))


def better_workers(speed: Speed) -> int | None:
    """Returns the fewest readers that are quickest here; None where more would hardly help."""
    rates = {n: expected(speed, n) for n in range(1, speed.machine.num_cores + 1)}
    fewest = next(n for n, rate in rates.items() if rate >= _AS_GOOD * max(rates.values()))
    helps = rates[fewest] >= _WORTH_IT * speed.whole
    return fewest if fewest > speed.machine.num_workers and helps else None


def _workers(speed: Speed) -> str:
    """Says how many readers to have; or, where there are as many as make sense, what is wrong."""
    machine, workers, enough = speed.machine, better_workers(speed), enough_workers(speed)
    promised = expected(speed, workers or machine.num_workers)
    shared = ", which the model needs as well" if machine.is_cpu else ""
    if workers is not None:
        reads = machine.num_workers > 0
        why = "The readers are too slow for" if reads else "Nothing is read while"
        lack = (
            f" Keeping up with the model would take {enough}; there are {machine.num_cores} cores"
            f"{shared}."
        )
        return (
            f"{why} the model{'' if reads else ' works'}: --num-workers {workers} would make about "
            f"{_rate(promised)} images/s instead of {_rate(speed.whole)}."
            f"{lack if enough > machine.num_cores else ''}"
        )
    if promised >= _WORTH_IT * speed.whole:
        others = "the model or something else takes" if machine.is_cpu else "something else takes"
        return (
            f"Of {counted(machine.num_workers, 'worker')} {_rate(promised)} images/s could be "
            f"expected: {others} their cores, or the disk."
        )
    return (
        f"More workers would not help: keeping up with the model would take {enough}, and there "
        f"are {counted(machine.num_cores, 'core')}{shared}. Lighter files would help, or more "
        "cores."
    )


def _lighter_files(speed: Speed) -> list[str]:
    """Says what makes a file quicker to read, by the stage that most of its time goes to."""
    images, oversized = speed.images, speed.images.oversized
    if max(READERS, key=speed.cost_ms) == "reading":
        return [
            f"A file takes {speed.stage('reading').mean_ms:.1f} ms to come from the disk: copy "
            "them to one in this machine, best an SSD, or make smaller copies of them."
        ]
    says: list[str] = []
    if images.exact:
        says.append(
            "exact_pixels is on, which decodes and resizes in full: --no-exact-pixels is quicker, "
            "of large photos several times, and embeddings have a cosine of 0.9999 to these."
        )
        oversized = {name: number for name, number in oversized.items() if name not in _DRAFTED}
    measured = counted(images.num_measured, "image")
    copies = f"{2 * images.enough_px} px on the shorter side."
    if oversized:
        which = ", ".join(f"{number:,} {name}" for name, number in oversized.items())
        says.append(
            f"{sum(oversized.values()):,} of {measured} ({which}) are much larger than the model "
            "needs, and decoded in full, where JPEG files come out at a half or less. Make JPEG "
            f"copies of them once, {copies}"
        )
    if images.large:
        says.append(
            f"{images.large:,} of {measured} are large JPEG files, decoded at a fraction of "
            f"their size already. Smaller copies, made once, are quicker still: {copies}"
        )
    return says


def _quicker_model(speed: Speed) -> list[str]:
    """Says what makes the model quicker, or another one that is."""
    machine, stays = speed.machine, speed.machine.better_device is None
    this = "This processor" if machine.is_cpu else "This GPU"
    batch_ms = speed.stage("model").mean_ms * machine.batch_size
    units = "" if machine.fast_bf16 else ", or a processor with units for bf16"
    times = speed.gigaflops / _SMALL_GIGAFLOPS
    smaller = (
        f" A smaller model is faster, and finds less: {SMALL_MODEL} computes {times:.0f} times "
        "less than this one."
    )
    says = {
        f"This machine has a {machine.better_device} device: --device auto takes it.": not stays,
        f"{this} is much faster in bf16 than in fp32: --precision auto.": (
            machine.precision == "fp32" and machine.fast_bf16
        ),
        f"{this} has no units for bf16 and only imitates it: --precision auto.": (
            machine.precision == "bf16" and not machine.fast_bf16
        ),
        f"The model computes with 1 thread of {machine.num_cores} cores: leave OMP_NUM_THREADS "
        "unset.": machine.is_cpu and machine.num_threads == 1 and machine.num_cores > 1,
        "This processor multiplies integers faster: --precision int8 (pip install "
        "'lookalike[int8]') is about 1.5 times as fast as bf16, 2.5 times or more as fast as "
        "fp32, and coarser; lookalike evaluate tells what it does to the metrics.": (
            machine.fast_int8 and stays and machine.precision != "int8"
        ),
        f"A batch of {machine.batch_size} takes {batch_ms:.0f} ms, too little for a GPU to "
        f"work on at a time: --eval-batch-size {_LARGE_BATCH}.": (
            not machine.is_cpu and machine.batch_size < _LARGE_BATCH and batch_ms < _SHORT_BATCH_MS
        ),
        f"A GPU would be many times as fast{units}.{smaller if times >= 2 else ''}": (
            machine.is_cpu and stays
        ),
    }
    well_used = "The device is well used. A smaller model is faster, and so are more GPUs."
    return [sentence for sentence, holds in says.items() if holds] or [well_used]


def _rate(images_per_s: float) -> str:
    return f"{images_per_s:,.0f}" if images_per_s >= 100 else f"{images_per_s:.3g}"
