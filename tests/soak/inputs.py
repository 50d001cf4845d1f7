"""Faults of what is read: tables, folders, images, recipes, metrics, rankings."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from soak.ground import (
    TERMINAL,
    Command,
    any_reader,
    evaluate,
    fault,
    train,
)
from soak.spoil import deep, empty, huge_png, spoil, truncate


@fault
def header_is_spelt_otherwise(folder: Path, draw: Random) -> Command:
    table = folder / "photos.csv"
    header = draw.choice(
        [
            "Path,Label",
            "path, label",
            " path ,label",
            "path,lable",
            "path,label,label",
            "path;label",
            "file,label",
            "",
            f"path,label{TERMINAL}",
            "path,label,path",
        ]
    )
    table.write_text(table.read_text().replace("path,label", header, 1))
    return any_reader(draw, "photos.csv")


@fault
def table_is_encoded_otherwise(folder: Path, draw: Random) -> Command:
    table = folder / "photos.csv"
    text = table.read_text().replace(",a", ",ä")
    encoding = draw.choice(["utf-16", "utf-16-le", "utf-8-sig", "cp1252", "utf-32", "latin-1"])
    table.write_bytes(text.encode(encoding))
    return any_reader(draw, "photos.csv")


@fault
def table_has_a_strange_cell(folder: Path, draw: Random) -> Command:
    table = folder / "photos.csv"
    lines = table.read_text().splitlines()
    cell = draw.choice(
        [
            "\0",
            "x" * 200_000,
            '"',
            "~/nobody.png",
            "..\\..\\a.png",
            "/dev/zero",
            "/",
            "test",
            TERMINAL,
            "nan",
            "",
            "http://host/a.png",
            "\u0301",
        ]
    )
    row = draw.randrange(1, len(lines))
    path, label = lines[row].split(",")
    lines[row] = f"{cell},{label}" if draw.random() < 0.5 else f"{path},{cell}"
    table.write_text("\n".join(lines) + "\n")
    return any_reader(draw, "photos.csv")


@fault
def parquet_holds_other_things(folder: Path, draw: Random) -> Command:
    import pyarrow
    from pyarrow import parquet

    paths = sorted(path.relative_to(folder).as_posix() for path in (folder / "test").rglob("*.png"))
    labels: list[Any] = draw.choice(
        [
            [float("nan")] * len(paths),
            [["a"]] * len(paths),
            [{"a": 1}] * len(paths),
            [None] * len(paths),
            [1.0, 2.0] * (len(paths) // 2),
            [True, False] * (len(paths) // 2),
            [b"\xff\xfe"] * len(paths),
            ["x" * 3_000_000, "b"] * (len(paths) // 2),
        ]
    )
    parquet.write_table(pyarrow.table({"path": paths, "label": labels}), folder / "t.parquet")
    if draw.random() < 0.3:
        spoil(folder / "t.parquet", draw)
    return any_reader(draw, "t.parquet")


@fault
def systems_left_something(folder: Path, draw: Random) -> Command:
    for name in draw.sample(
        ["Thumbs.db", "desktop.ini", ".DS_Store", "._a_000.png", "Picasa.ini"], 2
    ):
        (folder / "test/a" / name).write_bytes(os.urandom(100))
    for name in draw.sample(["@eaDir", "__MACOSX", ".thumbnails", "#recycle"], 2):
        (folder / "test/a" / name).mkdir()
        Image.new("RGB", (9, 9)).save(folder / "test/a" / name / "b.png")
    return any_reader(draw, "test")


@fault
def folder_holds_no_files_of_the_usual_kind(folder: Path, draw: Random) -> Command:
    place = folder / "test/a/odd.png"
    kind = draw.choice(["fifo", "loop", "dangling", "device", "folder", "socket", "unreadable"])
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    elif kind == "socket":
        import socket

        socket.socket(socket.AF_UNIX).bind(os.path.relpath(place))
    elif kind == "unreadable":
        place.write_bytes(b"")
        place.chmod(0)
    else:
        target = {"loop": "..", "dangling": "nowhere", "device": "/dev/zero"}[kind]
        place.symlink_to(target)
    return any_reader(draw, "test")


@fault
def an_image_is_damaged(folder: Path, draw: Random) -> Command:
    image = draw.choice(sorted((folder / "test").rglob("*.png")))
    draw.choice([spoil, truncate, empty])(image, draw)
    return any_reader(draw, "test")


@fault
def an_image_is_something_else(folder: Path, draw: Random) -> Command:
    image = draw.choice(sorted((folder / "test").rglob("*.png")))
    image.write_bytes(
        draw.choice(
            [
                b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
                b"%PDF-1.4\n",
                b"GIF89a",
                b"\xd7\xcd\xc6\x9a" + bytes(40),
                b"<svg xmlns='http://www.w3.org/2000/svg'/>",
                b"#!/bin/sh\n",
                b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\xff\xff\xff\x0f" + bytes(9),
                huge_png(),
                b"\0\0\1\0\1\0",
            ]
        )
    )
    return any_reader(draw, "test")


@fault
def an_image_is_hard(folder: Path, draw: Random) -> Command:
    picture, place = Image.new("RGBA", (64, 40), (200, 10, 10, 90)), folder / "test/a/hard"
    kind = draw.choice(["tiff", "ico", "gif", "webp", "bmp", "ppm", "jpeg", "tga", "icns"])
    buffer = io.BytesIO()
    (picture if kind in ("ico", "webp", "icns", "tiff") else picture.convert("RGB")).save(
        buffer, kind
    )
    place.write_bytes(buffer.getvalue())
    if draw.random() < 0.7:
        spoil(place, draw)
    return any_reader(draw, "test")


@fault
def one_class_or_no_pair(folder: Path, draw: Random) -> Command:
    (folder / "few/x").mkdir(parents=True)
    for number in range(draw.choice([0, 1, 4])):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(folder / f"few/x/{number}.png")
    return any_reader(draw, "few")


@fault
def queries_and_gallery_are_given_as_a_test(folder: Path, draw: Random) -> Command:
    (folder / "both").mkdir()
    (folder / "test").rename(folder / "both" / draw.choice(["query", "queries", "Query"]))
    (folder / "train").rename(folder / "both" / draw.choice(["gallery", "index"]))
    return evaluate("both")


@fault
def a_recipe_is_spoilt(folder: Path, draw: Random) -> Command:
    (folder / "recipe.yaml").write_bytes(
        draw.choice(
            [
                b"[" * 5000,
                b"{a: " * 5000,
                b"num_epochs: 1".decode().encode("utf-16"),
                b"\xff\xfe\0",
                b"a: &a [x,x,x,x,x,x,x,x,x]\n"
                + b"".join(
                    b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n"
                    % ((98 + i,) * 2 + (97 + i,) * 9)
                    for i in range(12)
                ),
                b"num_epochs: " + b"9" * 6000,
                b"!!python/object/apply:os.system ['touch pwned']",
                b"learning_rate: [1, 2]",
                b"- 1\n- 2",
                b"num_epochs: 1\nnum_epochs: 2",
                b"? {a: b}\n: c",
                b"learning_rate: .nan",
                b"\t: \x1b[31m",
            ]
        )
    )
    return train("--recipe", "recipe.yaml")


@fault
def metrics_are_spoilt(folder: Path, draw: Random) -> Command:
    file = folder / "metrics.json"
    if draw.random() < 0.4:
        draw.choice([spoil, truncate, empty, deep])(file, draw)
    else:
        document = json.loads(file.read_text())
        place, name = document, draw.choice(sorted(document))
        if isinstance(document[name], dict) and document[name] and draw.random() < 0.7:
            place, name = document[name], draw.choice(sorted(document[name]))
        place[name] = draw.choice([None, "x", [], {}, 1e308, -1, TERMINAL, [[]], {"a": {}}, True])
        file.write_text(json.dumps(document))
    return Command(["compare", "run/results/metrics_epoch_00.json", "metrics.json"])


@fault
def a_ranking_is_spoilt(folder: Path, draw: Random) -> Command:
    file = folder / draw.choice(["run.trec", "qrels.trec"])
    if draw.random() < 0.4:
        draw.choice([spoil, truncate, empty])(file, draw)
    else:
        line = draw.choice(
            [
                "q0 Q0 d0 1 nan x",
                "q0 Q0 d0 1",
                "q0 Q0 d0 1 1e400 x",
                "\0",
                "q" * 10**6,
                "q0 Q0 d0 x 0.5 x",
                "q0 0 d0 1e9",
                "q0 0 d0 " + "9" * 5000,
                TERMINAL,
            ]
        )
        file.write_text(file.read_text() + line + "\n")
    return Command(["evaluate", "--run", "run.trec", "--qrels", "qrels.trec", "--out", "out"])
