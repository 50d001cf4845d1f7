"""Embeddings as files: out and in again, from others, and everything wrong that they can be."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.photos import write_tree
from helpers.runs import Settings
from helpers.runs import evaluate as run

from lookalike.data.images import ImageSet
from lookalike.data.sources import load_images
from lookalike.embedding.interchange import (
    load_embeddings,
    read_names_back,
    save_embeddings,
    write_names,
)
from lookalike.errors import ConfigError, DataError, MissingExtraError, OutputError

ODD = ["plain.png", "a b, c.png", 'quo"te.png', "new\nline.png", "Screenshot 3.45\u202fPM.png",
       "sub/\u200b.png", "caf\udce9.png", "é.png", "100%.png"]  # fmt: skip


def images(names: list[str], labels: list[str] | None = None) -> ImageSet:
    return ImageSet(Path("images"), names, labels)


def embeddings(n: int, dim: int = 5) -> torch.Tensor:
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(rows, dim=1)


def foreign(path: Path, names: list[str], matrix: np.ndarray) -> Path:
    """An .npy file with its names, as another program writes them."""
    np.save(path, matrix)
    with open(path.with_suffix(".csv"), "w", newline="") as file:
        csv.writer(file).writerows([["path"], *[[name] for name in names]])
    return path


@pytest.mark.parametrize("ending", ["npy", "parquet"])
@pytest.mark.parametrize("labelled", [True, False])
def test_what_is_saved_comes_back_for_any_name_in_any_order(
    tmp_path: Path, ending: str, labelled: bool
) -> None:
    known, path = images(ODD, ["x"] * len(ODD) if labelled else None), tmp_path / f"e.{ending}"
    save_embeddings(path, embeddings(len(ODD)), known)
    backwards = known.subset(reversed(range(len(ODD))))
    found = load_embeddings(path, backwards)
    assert torch.allclose(found, embeddings(len(ODD)).flip(dims=[0]), atol=1e-7)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e-30, 1e22, 1e200])
def test_the_scale_of_others_embeddings_does_not_matter(
    tmp_path: Path, kind: str, scale: float
) -> None:
    if (scale != 1 and np.abs(np.float64(scale)) > np.finfo(kind).max / 10) or kind == "float16":
        scale = 1.0
    matrix = (embeddings(4).double().numpy() * scale).astype(kind)
    names = [f"{i}.png" for i in range(4)]
    found = load_embeddings(foreign(tmp_path / "e.npy", names, matrix), images(names))
    assert torch.allclose(found.norm(dim=1), torch.ones(4))
    assert torch.allclose(found, embeddings(4), atol=1e-2 if kind == "float16" else 1e-5)


def test_images_are_found_by_where_they_lie_however_it_is_written(tmp_path: Path) -> None:
    tree = load_images(write_tree(tmp_path / "photos", {"a": 2, "b": 2}))
    ways = [f"./{tree.names[0]}", tree.paths[1], f"a//../{tree.names[2]}", tree.names[3]]
    found = load_embeddings(foreign(tmp_path / "e.npy", ways, embeddings(4).numpy()), tree)
    assert torch.allclose(found, embeddings(4))


def test_only_the_names_matter_of_the_table_beside_an_array(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", embeddings(2).numpy())
    (tmp_path / "e.csv").write_text("label,is_query,path\n,perhaps,b.png\n,,a.png\n")
    found = load_embeddings(tmp_path / "e.npy", images(["a.png", "b.png"]))
    assert torch.allclose(found, embeddings(2).flip(dims=[0]))


def test_embeddings_that_have_no_direction_are_named(tmp_path: Path) -> None:
    matrix = embeddings(4).numpy()
    matrix[1], matrix[3, 2] = 0, np.nan
    names = [f"{i}.png" for i in range(4)]
    with pytest.raises(DataError, match=r"2 images.*zero or not finite: 1\.png, 3\.png"):
        load_embeddings(foreign(tmp_path / "e.npy", names, matrix), images(names))


def _archive(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, a=np.ones(3))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.write_bytes(b""), "no .npy file"),
        (lambda path: path.write_text("hello"), "no .npy file"),
        (_archive, "archive"),
        (lambda path: np.save(path, np.ones((2, 3), dtype=int)), "holds int64"),
        (lambda path: np.save(path, np.ones((3, 3))), r"\(3, 3\) for 2 names"),
        (lambda path: np.save(path, np.ones((2, 0))), r"\(2, 0\)"),
        (lambda path: np.save(path, np.ones(2)), r"\(2,\)"),
        (lambda path: path.unlink(), "cannot read"),
    ],
)
def test_what_is_no_matrix_of_embeddings_says_so_in_one_line(
    tmp_path: Path, write: Any, words: str
) -> None:
    path = foreign(tmp_path / "e.npy", ["a.png", "b.png"], embeddings(2).numpy())
    write(path)
    with pytest.raises(DataError, match=words) as caught:
        load_embeddings(path, images(["a.png", "b.png"]))
    assert "\n" not in str(caught.value)
    assert "pickle" not in str(caught.value)


def test_missing_and_repeated_images_are_named(tmp_path: Path) -> None:
    path = foreign(tmp_path / "e.npy", ["a.png", "b.png"], embeddings(2).numpy())
    with pytest.raises(DataError, match=r"1 of 2 images have no embedding.*c\.png.*a\.png"):
        load_embeddings(path, images(["a.png", "c.png"]))
    path = foreign(tmp_path / "e.npy", ["a.png", "./a.png"], embeddings(2).numpy())
    with pytest.raises(DataError, match="twice"):
        load_embeddings(path, images(["a.png"]))
    with pytest.raises(DataError, match=r"neither \.npy nor \.parquet"):
        load_embeddings(tmp_path / "e.bin", images(["a.png"]))


def test_another_models_embeddings_score_as_the_model_does(
    settings: Settings, tmp_path: Path
) -> None:
    first = run(settings(out=str(tmp_path / "one"), save_embeddings="parquet"))
    saved = next(path for path in first.files if path.suffix == ".parquet")
    again = run(settings(out=str(tmp_path / "two"), test_embeddings=str(saved)))
    assert again.metrics == first.metrics


def test_queries_and_gallery_of_two_models_are_refused(
    settings: Settings, photos: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"test": None}
    for side, dim in (("query", 5), ("gallery", 6)):
        names = load_images(photos / side).names
        matrix = embeddings(len(names), dim).numpy()
        options[side] = str(photos / side)
        options[f"{side}_embeddings"] = str(foreign(tmp_path / f"{side}.npy", names, matrix))
    with pytest.raises(DataError, match=r"5-d and the gallery is 6-d"):
        run(settings(**options))


def test_nothing_is_replaced_and_no_time_is_lost_before_the_missing_package_is_named(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "out" / "results"
    results.mkdir(parents=True)
    for name in ("qrels_epoch_00.trec", "embeddings_epoch_00_test.csv"):
        (results / name).write_text("precious")
        with pytest.raises(OutputError, match=f"{name} already exists"):
            run(settings(out=str(tmp_path / "out"), trec=True, save_embeddings="npy"))
        assert [(p.name, p.read_text()) for p in results.iterdir()] == [(name, "precious")]
        (results / name).unlink()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lookalike\[parquet\]'"):
        run(settings(out=str(tmp_path / "out"), save_embeddings="parquet"))
    assert list(results.iterdir()) == []


@pytest.fixture
def everything_written(settings: Settings, tmp_path: Path) -> Path:
    """The folder of an evaluation that wrote all that can be asked for, of two models."""
    run(settings(trec=True, save_embeddings="npy"))
    results = tmp_path / "out" / "results"
    for name in ("run_epoch_01.trec", "embeddings_epoch_01_test.npy", "run_epoch_00.trec.bak"):
        (results / name).write_text("of another model, or of nobody")
    return results


def test_what_was_asked_for_before_does_not_outlive_the_results_it_belongs_to(
    settings: Settings, everything_written: Path
) -> None:
    run(settings(overwrite=True, save_embeddings="npy"))
    assert sorted(path.name for path in everything_written.iterdir()) == [
        "embeddings_epoch_00_test.csv",
        "embeddings_epoch_00_test.json",
        "embeddings_epoch_00_test.npy",
        "embeddings_epoch_01_test.npy",
        "metrics_epoch_00.json",
        "retrieval_results_epoch_00.json",
        "run_epoch_00.trec.bak",
        "run_epoch_01.trec",
    ]
    run(settings(overwrite=True))
    left = {path.name for path in everything_written.iterdir() if "epoch_00_" in path.name}
    assert left == set()


def test_embeddings_that_are_measured_are_not_removed(
    settings: Settings, everything_written: Path
) -> None:
    path = everything_written / "embeddings_epoch_00_test.npy"
    before = path.read_bytes()
    with pytest.raises(OutputError, match="already exists"):
        run(settings(test_embeddings=str(path)))
    run(settings(test_embeddings=str(path), overwrite=True))
    assert path.read_bytes() == before
    assert path.with_suffix(".csv").is_file()
    assert not (everything_written / "run_epoch_00.trec").exists()


def test_results_do_not_come_beside_files_of_others_unasked(
    settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "out" / "results" / "run_epoch_00.trec"
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    with pytest.raises(OutputError, match=f"{path.name} already exists"):
        run(settings())
    assert path.read_text() == "precious"


def test_settings_that_would_do_nothing_are_refused(settings: Settings) -> None:
    for extra in ({"trec": True}, {"holdout_classes": "0.5"}, {"save_embeddings": "npy"}):
        with pytest.raises(ConfigError, match=f"leave {next(iter(extra))} out"):
            run(settings(test=None, run="a.trec", qrels="b.trec", **extra))


FORMULAS = ["=1+1.jpg", "+a.jpg", "-1/b.jpg", "@SUM.jpg", "\t=x.jpg", "\r=x.jpg", "\n=x.jpg",
            "\uff1d1.jpg", "\uff20SUM.jpg"]  # fmt: skip
PLAIN = ["a=1.jpg", "'quoted'.jpg", "b/-1.jpg", "'", ""]


def test_no_cell_is_a_formula_and_all_names_come_back(tmp_path: Path) -> None:
    names = [*FORMULAS, *PLAIN, *(f"'{name}" for name in FORMULAS), "''=x.jpg"]
    labels = ["=HYPERLINK(1)", *(["plain"] * (len(names) - 1))]
    path = tmp_path / "names.csv"
    write_names(path, {"path": names, "label": labels})
    with open(path, newline="", encoding="utf-8") as file:
        _, *rows = list(csv.reader(file))
    cells = [cell for row in rows for cell in row]
    assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r\n\uff1d\uff20") and cell]
    assert [row[0] for row in rows][len(FORMULAS) :][: len(PLAIN)] == PLAIN
    assert rows[0][1] == "'=HYPERLINK(1)"
    assert read_names_back(path) == names


def test_names_are_found_in_either_form_of_unicode(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9/1.png", "cafe\u0301/1.png"
    rows = embeddings(2)
    for stored, asked in ((composed, apart), (apart, composed)):
        path = foreign(tmp_path / "e.npy", ["0.png", stored], rows.numpy())
        assert torch.allclose(load_embeddings(path, images([asked])), rows[1:], atol=1e-7)


def test_columns_of_others_embeddings_are_known_whatever_their_capitals(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = embeddings(2)
    table = pyarrow.table({"note": [1, 2], " Embedding": rows.tolist(), "Path": ["a", "b"]})
    parquet.write_table(table, tmp_path / "e.parquet")
    found = load_embeddings(tmp_path / "e.parquet", images(["b", "a"]))
    assert torch.allclose(found, rows.flip(dims=[0]), atol=1e-7)
    (tmp_path / "e.csv").write_text("note; PATH\n1;a\n2;b\n")
    np.save(tmp_path / "e.npy", rows.numpy())
    found = load_embeddings(tmp_path / "e.npy", images(["b", "a"]))
    assert torch.allclose(found, rows.flip(dims=[0]), atol=1e-7)
    parquet.write_table(pyarrow.table({"pa\x1b[31mth": ["a"]}), tmp_path / "e.parquet")
    with pytest.raises(DataError) as told:
        load_embeddings(tmp_path / "e.parquet", images(["a"]))
    assert str(told.value).isprintable()


def test_a_file_whose_name_is_blank_keeps_its_row(tmp_path: Path) -> None:
    rows = embeddings(3)
    known = images(["a.png", "  ", "b.png"])
    save_embeddings(tmp_path / "e.npy", rows, known)
    assert torch.allclose(load_embeddings(tmp_path / "e.npy", known), rows, atol=1e-7)
