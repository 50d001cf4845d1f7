"""`Embedder`: images and texts to embeddings, by one model in its fastest form."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from torch import Tensor

from lookalike.config import DEFAULT_MAX_MEGAPIXELS, DEFAULT_MODEL
from lookalike.config.groups import Basics
from lookalike.config.options import checked
from lookalike.data.images import ImageRef, ImageSet, Unreadable, shown_path
from lookalike.data.reading.cache import DecodeCache
from lookalike.data.reading.loader import ImageLoader, chunks
from lookalike.data.reading.reader import Request
from lookalike.data.sources import load_unlabelled
from lookalike.data.transforms import Preprocessing, preprocess
from lookalike.embedding.fingerprint import fingerprint_of
from lookalike.embedding.items import Item, content_of, decode, is_file, own_copy
from lookalike.errors import DataError, ImageError, ModelError
from lookalike.files import shown
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.inference import EmbedBatch, inference_form
from lookalike.model.layers import on_device
from lookalike.model.text import embed_texts
from lookalike.progress import Progress, SilentProgress, counted
from lookalike.runtime.device import Runtime, make_runtime
from lookalike.runtime.memory import check_memory, enough_memory

_MOST_DECODERS = 8  # threads


@dataclass(frozen=True)
class Embedded:
    """Embeddings of the images that could be read, each of length 1.

    Row i belongs to the source's image `positions[i]`, whose name is `names[i]`; positions rise.
    """

    embeddings: Float32[Tensor, "n dim"]
    positions: Int64[np.ndarray, " n"]
    names: list[str]
    unreadable: list[Unreadable]


class Embedder:
    """Embeds images and texts with one model, held in its fastest form (made when first needed).

    >>> embedder = Embedder("runs/shop/weights/encoder_epoch_03.pth")       # doctest: +SKIP
    >>> rows = embedder.images(["a.jpg", open("b.png", "rb").read()])       # doctest: +SKIP
    >>> rows @ embedder.texts(["a red shoe"]).T                             # doctest: +SKIP
    >>> for part in embedder.stream("photos"):                              # doctest: +SKIP
    ...     print(part.names, part.embeddings.shape)

    Changes of the weights after the first embedding call for another `Embedder`.

    Args:
        model: a checkpoint of ours, a local Transformers folder, a hub id, or a `CLIPEncoder`.
        embedding: of what is loaded by name, as `CLIPEncoder` takes it.
        device: "auto", or what `torch.device` takes; of a `CLIPEncoder` the one it is on.
        precision: "auto", "bf16", "fp16", "fp32" or "int8".
        exact_pixels: cut images as the model's own processor does, to the last bit: slower.
        max_megapixels: larger images are unreadable.
        batch_size: images embedded at a time.
        num_workers: processes that read images for `stream`, or "auto"; 0 reads in this one.
        progress: where `stream` shows how far it is; None: nowhere.
        runtime: one that is there already, for `device`, `precision` and `num_workers`; a
            `CLIPEncoder` that comes with it is on its device.

    Raises:
        ModelError, CheckpointError: the model cannot be loaded.
        ConfigError: an argument is none of those above; or the device does not exist here, or
            cannot compute in that precision.
        MissingExtraError: int8 without OpenVINO installed.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | CLIPEncoder = DEFAULT_MODEL,
        *,
        embedding: Literal["auto", "projected", "pooled"] = "auto",
        device: str = "auto",
        precision: str = "auto",
        exact_pixels: bool = False,
        max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
        batch_size: int = 64,
        num_workers: int | Literal["auto"] = "auto",
        progress: Progress | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        if runtime is None:
            if isinstance(model, CLIPEncoder) and device == "auto":
                device = str(model.device)
            num_workers = checked(Basics, "num_workers", num_workers)
            precision = checked(Basics, "precision", precision)
            runtime = make_runtime(checked(Basics, "device", device), precision, num_workers)
        embedding = checked(Basics, "embedding", embedding)
        if not isinstance(model, CLIPEncoder):
            name: str = checked(Basics, "model_name", model, called="model") or DEFAULT_MODEL
            model = on_device(CLIPEncoder(name, embedding=embedding), runtime)
            with runtime.autocast():
                _ = model.dim  # a model that cannot embed says so here, not at the first image
        self.encoder, self.runtime = model, runtime
        self.batch_size: int = _checked_size(batch_size)
        exact_pixels = checked(Basics, "exact_pixels", exact_pixels)
        self.preprocessing: Preprocessing = replace(model.preprocessing, exact=exact_pixels)
        self.max_megapixels: float = checked(Basics, "max_megapixels", max_megapixels)
        self.progress = progress or SilentProgress()

    @property
    def model_name(self) -> str:
        """Returns the name that the model was loaded by."""
        return self.encoder.model_name

    @property
    def kind(self) -> str:
        """Returns the embedding: "projected", the space shared with text, or "pooled"."""
        return self.encoder.kind

    @property
    def has_text(self) -> bool:
        """Returns whether `texts` embeds texts beside images."""
        return self.encoder.has_text

    @property
    def dim(self) -> int:
        """Returns the length of an embedding."""
        with self.runtime.autocast():
            return self.encoder.dim

    @cached_property
    def fingerprint(self) -> str:
        """Returns a hash of all that decides on an image's embedding, the same on every machine.

        It covers the weights that images pass through (in float32, LoRA merged), the settings of
        the vision model that are not its class's defaults, the kind of embedding and its pooling,
        how images are cut, and `EMBEDDING_VERSION`; not what changes no more than rounding: device,
        precision, exact pixels. The first use reads all the weights: 0.8 s for ViT-L/14 (304
        million) on one core.
        """
        return fingerprint_of(self.encoder)

    def facts(self) -> dict[str, Any]:
        """Returns what is written beside embeddings, for programs and people."""
        return {
            "fingerprint": self.fingerprint,
            "model_name": shown(self.model_name),
            "embedding": self.kind,
            "dim": self.dim,
            "preprocessing": self.preprocessing.facts(),
        }

    def images(self, items: Iterable[Item]) -> Float32[Tensor, "n dim"]:
        """Embeds images, read by threads of this process.

        A large JPEG file is decoded at a fraction of its size, which is quicker, but for
        `exact_pixels`; a Pillow image is taken as it is.

        Args:
            items: paths, bytes of files, binary file objects, Pillow images, and uint8 arrays of
                shape (height, width) or (height, width, 3); any number, of any kinds together.

        Raises:
            DataError: one of them cannot be read; says which and why.
            ModelError: an embedding is not finite, or the device has too little memory.
        """
        is_array = isinstance(items, np.ndarray) and items.ndim < 4
        is_single = isinstance(items, (str, bytes, os.PathLike, Image.Image)) or is_file(items)
        if is_array or is_single or not isinstance(items, Iterable):
            raise DataError(f"images() takes a list of images and was given a single "
                            f"{type(items).__name__}; write images([...])")  # fmt: skip
        rows: list[Tensor] = []
        # What an iterator yields may change when it is asked for more, as frames of a video do.
        left = iter(items) if isinstance(items, Sequence) else self._copies_of(items)
        start = 0
        most = min(_MOST_DECODERS, os.cpu_count() or 1)
        with ThreadPoolExecutor(most) as pool:  # starts no more threads than it is given images
            while batch := list(islice(left, self.batch_size)):
                rows.append(self.pixels(self._pixels_of(batch, start, pool)))
                start += len(batch)
        embeddings = torch.cat(rows) if rows else torch.empty(0, self.dim)
        check_finite(embeddings, [f"item {number}" for number in range(start)])
        return embeddings

    def texts(self, strings: Iterable[str]) -> Float32[Tensor, "n dim"]:
        """Embeds texts in the space of the images, in float32; longer ones are cut.

        Raises:
            DataError: it is not texts that were given.
            ModelError: the model has no text tower, or its embeddings are not the projected ones.
        """
        if isinstance(strings, (str, bytes)) or not isinstance(strings, Iterable):
            raise DataError(f"texts() takes a list of texts and was given a single "
                            f"{type(strings).__name__}; write texts([...])")  # fmt: skip
        texts = list(strings)
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"text {number} is of type {type(text).__name__}; expected str")
        if self.encoder.why_no_text is None and not texts:
            return torch.empty(0, self.dim)
        return embed_texts(self.encoder, texts, progress=self.progress, title="embedding texts")

    def stream(
        self,
        source: str | Path | ImageSet | ImageLoader,
        batch_size: int | None = None,
        *,
        title: str = "embedding",
    ) -> Generator[Embedded, None, None]:
        """Embeds any number of images, and yields the rows of some at a time, in order.

        Memory is bounded whatever the number of images, but for the list of their names.
        Unreadable images have no row, and are named beside those that were embedded with them.

        Args:
            source: whatever `load_unlabelled` takes, images that were listed, or a loader of them.
            batch_size: images embedded at a time; None: the embedder's own.
            title: for the progress display.

        A row does not depend on the images beside it, nor on their order: the last batch, and what
        unreadable images leave, is filled up with black ones.

        Raises:
            ConfigError: a batch of no image.
            DataError: there is no such source, or no file in it; or a reading process died.
            ModelError: an embedding is not finite, or the device has too little memory.
        """
        size = self.batch_size if batch_size is None else _checked_size(batch_size)
        if isinstance(source, (str, Path)):
            source = load_unlabelled(source, self.progress)
        if isinstance(source, ImageSet):
            names, loader = source.names, self.loader(source.refs)
        elif isinstance(source, ImageLoader):
            names, loader = [shown_path(ref) for ref in source.refs], source
        else:
            raise DataError(
                f"stream() takes a folder, a table or shards, and was given a "
                f"{type(source).__name__}; for a list of images: images([...])"
            )
        requests = chunks(loader.num_images, size)
        for some in self.read(loader, requests, names, size, title=title):
            check_finite(some.embeddings, some.names)
            yield some

    def loader(self, refs: Sequence[ImageRef], *, cache: DecodeCache | None = None) -> ImageLoader:
        """Returns a loader that cuts these images as the model takes them."""
        return ImageLoader(
            refs,
            self.preprocessing,
            self.runtime,
            max_megapixels=self.max_megapixels,
            cache=cache,
            progress=self.progress,
        )

    def read(
        self,
        loader: ImageLoader,
        requests: Sequence[Request],
        names: Sequence[str],
        batch_size: int,
        *,
        title: str = "embedding",
    ) -> Iterator[Embedded]:
        """Embeds what is asked of a loader, and yields the rows of each request, which nobody has
        checked to be finite: no process need fail alone. Each shows about how far all of them are.

        All batches are of `batch_size`, or of all images where these are less, some of them black:
        how a row is rounded can depend on the number of rows.
        """
        size, world = min(batch_size, loader.num_images), self.runtime.world
        side = self.preprocessing
        check_memory(
            self.runtime.device, size * side.height * side.width * 3 * 5,  # uint8 and float32
            f"a batch of {size:,} images of {side.width}x{side.height} px",
            "lower --eval-batch-size",
        )  # fmt: skip
        black = self.encoder.preprocessing.black(size)
        left = min(loader.num_images, world.size * sum(len(one.indices) for one in requests))
        with self.progress.task(title, left) as task:
            for batch in loader.read(requests):
                pixels, num_rows = batch.pixels, len(batch.indices)
                if num_rows < size:
                    pixels = torch.cat([pixels, black[num_rows:]]) if num_rows else black
                rows = self.pixels(pixels)[:num_rows]
                done = min(left, world.size * (len(batch.indices) + len(batch.unreadable)))
                left -= done
                task.advance(done)
                named = [names[position] for position in batch.indices]
                yield Embedded(rows, np.array(batch.indices, np.int64), named, batch.unreadable)
            task.advance(left)

    def pixels(self, pixels: UInt8[Tensor, "batch 3 height width"]) -> Float32[Tensor, "batch dim"]:
        """Embeds one batch of pixels as `preprocess` cuts them; the rows come to the CPU."""
        size = len(pixels)
        smaller = f"--eval-batch-size {size // 2}, or " if size > 1 else ""
        with enough_memory(
            ModelError,
            f"{self.runtime.device} has too little memory to embed {counted(size, 'image')} at a "
            "time",
            f"set {smaller}--device cpu",
        ):
            return self._form(pixels.to(self.runtime.device, non_blocking=True)).cpu()

    @cached_property
    def _form(self) -> EmbedBatch:
        return inference_form(self.encoder, self.runtime)

    def _copies_of(self, items: Iterable[Item]) -> Iterator[Item]:
        return (own_copy(item, self.max_megapixels) for item in items)

    def _pixels_of(
        self, items: list[Item], start: int, pool: ThreadPoolExecutor
    ) -> UInt8[Tensor, "n 3 height width"]:
        """Returns the pixels of items, the first of which is number `start`."""
        once = {id(item): item for item in items}  # an opened one may come twice, and reads once
        contents = [content_of(item) for item in once.values()]
        known = dict(zip(once, pool.map(self._pixels, contents), strict=True))
        pixels: list[Tensor] = []
        bad: list[str] = []
        for number, one in enumerate((known[id(item)] for item in items), start):
            if isinstance(one, Tensor):
                pixels.append(one)
                continue
            item = items[number - start]
            name = f" ({shown(item)})" if isinstance(item, (str, os.PathLike)) else ""
            bad.append(f"item {number}{name}: {one}")
        if bad:
            more = f"; and {len(bad) - 3:,} more" if len(bad) > 3 else ""
            raise DataError(f"{counted(len(bad), 'image')} cannot be read: "
                            f"{'; '.join(bad[:3])}{more}")  # fmt: skip
        return torch.stack(pixels)

    def _pixels(self, item: Any) -> UInt8[Tensor, "3 height width"] | str:
        """Returns the pixels of one item, or why it has none."""
        try:
            image = decode(item, self.max_megapixels, self.preprocessing.draft_px())
        except ImageError as error:
            return error.reason
        try:
            return preprocess(image, self.preprocessing)
        except (MemoryError, ValueError):
            return f"cannot be resized ({image.width}x{image.height} px)"


def make_embedder(
    config: Basics, runtime: Runtime, progress: Progress, model: CLIPEncoder | None = None
) -> Embedder:
    """Returns the embedder that a command's options ask for; of `model` if it is loaded already."""
    return Embedder(
        model or config.model_name or DEFAULT_MODEL,
        embedding=config.embedding,
        exact_pixels=config.exact_pixels,
        max_megapixels=config.max_megapixels,
        batch_size=config.eval_batch_size,
        progress=progress,
        runtime=runtime,
    )


def check_finite(embeddings: Float32[Tensor, "n dim"], names: Sequence[str]) -> None:
    """Raises a `ModelError` that names the first image whose embedding is not finite."""
    if embeddings.isfinite().all():
        return
    row = int((~embeddings.isfinite()).any(dim=1).nonzero()[0])
    raise ModelError(
        f"the model gives numbers that are not finite, first for {shown(names[row])}; "
        "try --precision fp32, or an earlier checkpoint"
    )


def _checked_size(batch_size: int) -> int:
    """Returns a number of images, or raises ConfigError where it is not one."""
    return int(checked(Basics, "eval_batch_size", batch_size, called="batch_size"))
