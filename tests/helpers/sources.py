"""The same images as every kind of source."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from helpers.photos import draw

CLASSES = ("cup", "fork", "jug", "plate", "pot", "spoon")
KINDS = ("folder", "table", "tar", "shards", "parquet", "parquet shards", "saved", "saved splits")


def write_images(root: Path, per_class: int = 10) -> list[str]:
    """A class-per-folder tree of images of several formats; the names in order."""
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for copy in range(per_class):
            image = draw(label, copy)
            path = root / name / f"{name}_{copy:03}"
            if copy % 3 == 1:
                exif = Image.Exif()
                exif[0x0112] = 6  # to be turned by a quarter
                image.save(path.with_suffix(".jpg"), exif=exif, quality=90)
            else:
                image.save(path.with_suffix(".webp" if copy % 3 else ".png"))
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def parts(names: list[str], count: int) -> list[list[str]]:
    return [names[len(names) * i // count : len(names) * (i + 1) // count] for i in range(count)]


def as_dataset(root: Path, names: list[str], classes: tuple[str, ...] = CLASSES) -> Any:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))}
    )
    rows = {
        "image": [{"bytes": (root / name).read_bytes(), "path": name} for name in names],
        "label": [name.partition("/")[0] for name in names],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def write_kind(kind: str, root: Path, out: Path, classes: tuple[str, ...] = CLASSES) -> str:
    """Writes the images of a tree as another kind of source, in their order; its name."""
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    out.mkdir(parents=True)
    if kind == "folder":
        return str(root)
    if kind == "table":
        with open(out / "list.csv", "w", newline="") as file:
            rows = [(str(root / name), name.partition("/")[0]) for name in names]
            csv.writer(file).writerows([("path", "label"), *rows])
        return str(out / "list.csv")
    if kind == "tar":
        with tarfile.open(out / "all.tar", "w") as tar:
            for name in names:
                tar.add(root / name, f"./{name}")
        return str(out / "all.tar")
    if kind == "shards":
        for number, some in enumerate(parts(names, 3)):
            with tarfile.open(out / f"shards-{number:04}.tar", "w") as tar:
                for name in some:
                    label, _, base = name.partition("/")
                    stem = base.partition(".")[0]
                    if number == 1:
                        add(tar, f"{stem}.json", json.dumps({"label": label}).encode())
                    else:
                        add(tar, f"{stem}.cls", f"{label}\n".encode())
                    add(tar, base, (root / name).read_bytes())
        return str(out / "shards-{0000..0002}.tar")
    if kind == "parquet":
        as_dataset(root, names, classes).to_parquet(out / "all.parquet", batch_size=7)
        return str(out / "all.parquet")
    if kind == "parquet shards":
        for number, some in enumerate(parts(names, 3)):
            as_dataset(root, some, classes).to_parquet(out / f"part{number}.parquet", batch_size=7)
        return str(out)
    if kind == "saved":
        as_dataset(root, names, classes).save_to_disk(out / "saved", num_shards=3)
        return str(out / "saved")
    assert kind == "saved splits"
    datasets.DatasetDict({"train": as_dataset(root, names, classes)}).save_to_disk(out / "saved")
    return str(out / "saved")


def write_tar(path: Path, members: dict[str, bytes], mode: Any = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            add(tar, name, content)
    return path
