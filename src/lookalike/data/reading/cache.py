"""Decoded images kept on disk, so that later epochs need not decode the files again.

What is kept is what `read_image` returned, to the last bit: a cache changes time, never results.
An image is one file of `width x height x 3` bytes of RGB behind a head of text that says of what
file it is. Each carries a checksum, and what is damaged, cut short or of another file is decoded
anew and replaced. So nothing is flushed to the disk, as `files.write_whole` does: what a power cut
leaves half-written is found out when it is read.

Any number of processes and commands may use one folder at a time. A file appears whole, by a
rename, and is never changed after that; whoever has it open goes on reading what was there.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import secrets
import shutil
import struct
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL
from PIL import Image, features

from lookalike.config import DEFAULT_MAX_MEGAPIXELS, EvaluateConfig, TrainConfig
from lookalike.data.extent import Extent, bands, extent_of
from lookalike.data.images import FileKey, ImageRef, file_key
from lookalike.data.reading.decode import read_image
from lookalike.files import shown
from lookalike.progress import Progress, counted
from lookalike.runtime.world import World

_FORMAT = 2  # to be raised when `read_image` gives other pixels, or a file is laid out otherwise
_START = struct.Struct("<16sII")  # mark, checksum of all that follows this, bytes of the head
_MARK = b"lookalike RGB\n\0\0"
_LONGEST_HEAD = 2**16
_FILE_NAME = re.compile(r"[0-9a-f]{32}\.rgb")
_TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{32}\.rgb\.[0-9a-f]{8}\.tmp")
_ABANDONED_S = 3600.0  # after which nobody is still writing a temporary file
_BLOCK = 4096  # bytes that files grow by on most disks
_KEPT_FREE = 5_000_000_000  # bytes of the disk that are left to others
_LITTLE_ROOM = 0.1  # of all that the folder may hold
# Programs that make backups know by this file that what lies beside it can be made again.
_TAG_NAME = "CACHEDIR.TAG"
_TAG_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# Decoded images, kept by lookalike --decode-cache. May be deleted at any time.\n"
)

# What reading a head raises that is not what it should be.
_WRONG = (ValueError, TypeError, KeyError, OverflowError, RecursionError, struct.error)

_Origin: TypeAlias = dict[str, Any]  # what tells a kept image from all others, see `_origin`


@dataclass(frozen=True)
class Reads:
    """Counts of images that were taken from a cache, or decoded, and what became of these.

    `failure` is why one of them could not be kept, where that was not for want of room.
    """

    from_cache: int = 0
    decoded: int = 0
    added: int = 0
    without_room: int = 0
    failure: str | None = None

    def __add__(self, other: Reads) -> Reads:
        return Reads(
            self.from_cache + other.from_cache,
            self.decoded + other.decoded,
            self.added + other.added,
            self.without_room + other.without_room,
            self.failure or other.failure,
        )

    def __str__(self) -> str:
        text = f"{counted(self.from_cache, 'image')} read from it, {self.decoded:,} decoded"
        if self.added:
            text += f", {self.added:,} of these kept"
        if self.without_room:
            text += (f"; no room for {self.without_room:,}: raise --decode-cache-gb, or free some "
                     "of the disk")  # fmt: skip
        return text


class DecodeCache:
    """The cache as a command's main process sees it: made ready, and counted.

    It is handed to each `ImageLoader`, whose workers read through copies of `reader`. At most
    `max_bytes` lie in the folder, and `kept_free` bytes of the disk stay free.
    """

    def __init__(
        self, folder: Path, max_bytes: int, progress: Progress, *, kept_free: int = _KEPT_FREE
    ) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.reader = CachedReader(self.folder, max_bytes, kept_free)
        self.draft_sizes: set[int | None] = set()
        self.reads = Reads()
        self._shown, self._max_bytes, self._progress = shown(folder), max_bytes, progress
        self._state = "not looked at yet"

    def prepare(self) -> None:
        """Finds out what is in the folder, and, where it or the disk is nearly full, removes what
        no reading will use again: images of files that changed or are gone, of other versions
        of the decoders, and of `draft_px` that are not in `draft_sizes`.

        A folder that cannot be written to is a warning: what is in it is read.
        """
        sizes, removed = _kept_files(self.folder), 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / _TAG_NAME).exists():
                (self.folder / _TAG_NAME).write_text(_TAG_TEXT)
            if self.reader.room(sum(sizes.values())) < _LITTLE_ROOM * self._max_bytes:
                for path in [path for path in sizes if _is_outdated(path, self.draft_sizes)]:
                    with suppress(OSError):  # another command has removed it, or is reading it
                        path.unlink()
                        removed += 1
                    if not path.exists():
                        del sizes[path]
            self.reader.set_used(sum(sizes.values()))
        except OSError as error:
            self.count(Reads(failure=error.strerror or str(error)))
        self._state = (
            f"{counted(len(sizes), 'decoded image')}, {sum(sizes.values()) / 1e9:.1f} of "
            f"{self._max_bytes / 1e9:g} GB" + (f"; {removed:,} outdated removed" if removed else "")
        )

    def describe(self) -> str:
        """Returns one line for the start of a run: what `prepare` has found."""
        return f"{self._shown}: {self._state}"

    def count(self, reads: Reads) -> None:
        """Adds what a batch came to; the first failure is told."""
        if reads.failure and not self.reads.failure:
            self._progress.warn(
                f"cannot keep decoded images in {self._shown}: {reads.failure}. What is not in "
                "there is decoded each time"
            )
        self.reads += reads

    def reads_of_all(self, world: World) -> Reads:
        """Returns what all processes of a command have read so far; each of them has to ask."""
        return sum(world.all_gather_objects(self.reads), start=Reads())


def make_cache(config: TrainConfig | EvaluateConfig, progress: Progress) -> DecodeCache | None:
    """Returns the cache that a configuration names; None where it names none."""
    if config.decode_cache is None:
        return None
    return DecodeCache(Path(config.decode_cache), round(config.decode_cache_gb * 1e9), progress)


class CachedReader:
    """Reads images as `read_image` does; one lives in each process that reads.

    When the folder is full, what is in it stays: an epoch visits every image once, so whatever was
    thrown out for a new one would be needed before the new one is.

    How full it is stands in the length of the file `used`: a byte for each 4096. Adding to its end
    is one step for the system, so processes that know nothing of each other keep one account. They
    go beyond the bound by one image each at most, and errors of the account (a process that was
    killed, an image that was replaced) last until the next command counts.
    """

    def __init__(self, folder: Path, max_bytes: int, kept_free: int) -> None:
        self._folder, self._max_bytes, self._kept_free = folder, max_bytes, kept_free
        self._reads = Reads()

    def read(
        self,
        ref: ImageRef,
        max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
        *,
        draft_px: int | None = None,
    ) -> Image.Image:
        """Returns the same image as `read_image`, from the cache where it is there.

        What was kept under a higher limit of megapixels than now is decoded again, and so refused
        if it is too large. Nothing is kept of a file that cannot be read.
        """
        origin = _origin(ref, draft_px)
        if origin is None:
            return read_image(ref, max_megapixels, draft_px=draft_px)
        file = self._folder / _file_name(origin)
        image = _load(file, origin, max_megapixels)
        if image is not None:
            self._reads += Reads(from_cache=1)
            return image
        image = read_image(ref, max_megapixels, draft_px=draft_px)
        self._reads += Reads(decoded=1)
        if _origin(ref, draft_px) == origin:  # else it changed while it was read
            self._reads += self._keep(file, origin, max_megapixels, image)
        return image

    def take_reads(self) -> Reads:
        """Returns what was read since the last call."""
        reads, self._reads = self._reads, Reads()
        return reads

    def room(self, used: int) -> int:
        """Returns how many bytes may be added where so many are used."""
        free = shutil.disk_usage(self._folder).free
        return min(self._max_bytes - used, free - self._kept_free)

    def set_used(self, used: int) -> None:
        """Starts a new account."""
        with open(self._folder / "used", "wb", opener=_without_waiting) as file:
            file.write(b"." * (used // _BLOCK))

    def _keep(
        self, file: Path, origin: _Origin, max_megapixels: float, image: Image.Image
    ) -> Reads:
        facts = {"origin": origin, "max_megapixels": max_megapixels, "extent": extent_of(image),
                 "width": image.width, "height": image.height}  # fmt: skip
        head = json.dumps(facts).encode()
        size = _on_disk(_START.size + len(head) + 3 * image.width * image.height)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._folder / "used", "ab", opener=_without_waiting) as used:
                if size > self.room(used.tell() * _BLOCK):
                    return Reads(without_room=1)
                used.write(b"." * (size // _BLOCK))
            _write(file, head, image)
        except OSError as error:
            return Reads(failure=error.strerror or str(error))
        except MemoryError:
            return Reads(failure=f"no memory for a copy of {image.width}x{image.height} px")
        return Reads(added=1)


def _origin(ref: ImageRef, draft_px: int | None, place: str | None = None) -> _Origin | None:
    """Returns what an image (at another place in its file) is known by; None without a file."""
    key = file_key(ref)
    if key.num_bytes < 0:
        return None
    place = key.place if place is None else place
    return {"path": key.path, "bytes": key.num_bytes, "mtime_ns": key.mtime_ns,
            "ctime_ns": key.ctime_ns, "inode": key.inode,
            "draft_px": draft_px, "decoders": _decoders(), "place": place}  # fmt: skip


def _file_name(origin: _Origin) -> str:
    """Returns one for each image and `draft_px`: that of a changed file replaces the old one."""
    name = os.fsencode(FileKey(origin["path"], origin["place"], 0, 0).identity)
    digest = blake2b(name + f"\0{origin['draft_px']}".encode(), digest_size=16).hexdigest()
    return f"{digest[:2]}/{digest}.rgb"


@cache
def _decoders() -> str:
    """Returns the versions that pixels depend on."""
    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    return f"{_FORMAT}, Pillow {PIL.__version__}, JPEG {jpeg}, pillow-heif {version('pillow-heif')}"


def _load(file: Path, origin: _Origin, max_megapixels: float) -> Image.Image | None:
    """Returns the image kept in a file; None where it is another one, damaged, or not there."""
    try:
        with open(file, "rb", opener=_without_waiting) as opened:
            # Mapped, and copied from there by Pillow, whose pixels take four bytes.
            content = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
        mark, checksum, length = _START.unpack_from(content)
        if mark != _MARK or checksum != zlib.crc32(content[_START.size :]):
            return None
        end = _START.size + length
        head = json.loads(content[_START.size : end].tobytes())
        if head["origin"] != origin or head["max_megapixels"] > max_megapixels:
            return None
        pixels = np.frombuffer(content[end:], np.uint8)
        image = Image.fromarray(pixels.reshape(head["height"], head["width"], 3))
        if head["extent"] is None:
            return image
        width, height, box = head["extent"]
        return Extent(width, height, tuple(box)).put_on(image)
    # ValueError: an empty file, or one of another length; MemoryError is read_image's to explain.
    except (OSError, MemoryError, *_WRONG):
        return None


def _without_waiting(path: str, flags: int) -> int:
    """Opens a file, or at once what only has the name of one: a pipe waits for its other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _write(file: Path, head: bytes, image: Image.Image) -> None:
    """Writes a kept image whole or not at all."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        checksum = zlib.crc32(head)
        with open(temporary, "xb") as opened:
            opened.seek(_START.size)
            opened.write(head)
            for box in bands(image.size):
                rows = image.crop(box).tobytes()
                checksum = zlib.crc32(rows, checksum)
                opened.write(rows)
            opened.seek(0)
            opened.write(_START.pack(_MARK, checksum, len(head)))
        os.replace(temporary, file)
    finally:
        with suppress(OSError):  # gone already where the rename succeeded
            temporary.unlink()


def _kept_files(folder: Path) -> dict[Path, int]:
    """Returns kept images with the bytes each takes on disk; removes what killed processes left."""
    kept: dict[Path, int] = {}
    for path in folder.glob("??/*"):
        with suppress(OSError):  # another command is removing outdated ones, or it is not ours
            if _FILE_NAME.fullmatch(path.name):
                kept[path] = _on_disk(path.stat().st_size)
                continue
            age_s = time.time() - path.stat().st_mtime
            if _TEMPORARY_NAME.fullmatch(path.name) and age_s > _ABANDONED_S:
                path.unlink()
    return kept


def _is_outdated(file: Path, draft_sizes: set[int | None]) -> bool:
    """Returns whether a kept image is of no use to readings with these `draft_px`."""
    try:
        with open(file, "rb", opener=_without_waiting) as opened:
            mark, _, length = _START.unpack(opened.read(_START.size))
            origin = json.loads(opened.read(min(length, _LONGEST_HEAD)))["origin"]
        if mark != _MARK or origin["draft_px"] not in draft_sizes:
            return True
        return bool(_origin(origin["path"], origin["draft_px"], origin["place"]) != origin)
    except OSError:
        return False
    except _WRONG:
        return True


def _on_disk(size: int) -> int:
    """Returns the bytes that a file of so many takes."""
    return -(-size // _BLOCK) * _BLOCK
