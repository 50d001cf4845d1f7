"""Checkpoints that are damaged, made by hand or hostile: one line, or no harm."""

from __future__ import annotations

import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.altered import entries, some
from helpers.photos import write_tree
from helpers.runs import SILENT, Watch, assert_same_bits, load

import lookalike
from lookalike.config import EvaluateConfig, ExportConfig, TrainConfig
from lookalike.config.settings import config_from
from lookalike.errors import CheckpointError, LookalikeError, OutputError
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.loading.side_files import write_side_files
from lookalike.model.pretrained import read_checkpoint

Loader = Callable[[Path, Path], Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """A finished run of two epochs beside its images, which no test changes."""
    folder = tmp_path_factory.mktemp("a_run")
    names = [f"class{c}" for c in "abcd"]
    write_tree(folder / "train", dict.fromkeys(names, 4))
    write_tree(folder / "test", dict.fromkeys(names, 2), first=10)
    options = {"train": str(folder / "train"), "test": str(folder / "test"), "report": False,
               "model_name": str(tiny_clip), "learning_rate": 1e-3, "num_workers": 0,
               "precision": "fp32", "device": "cpu", "out": str(folder / "run"), "num_epochs": 2,
               "overwrite": True}  # fmt: skip
    lookalike.train(options, progress=Watch())
    return folder


@pytest.fixture(scope="module")
def checkpoint(run: Path) -> Path:
    return run / "run/weights/encoder_epoch_01.pth"


def evaluate(path: Path, run: Path) -> None:
    config = EvaluateConfig(test=str(run / "test"), model_name=str(path), num_workers=0,
                            device="cpu", report=False, out=str(path.parent / "e"))  # fmt: skip
    lookalike.evaluate(config, progress=SILENT)


def resume(path: Path, run: Path) -> None:
    options = {"num_epochs": 2, "num_workers": 0, "out": str(path.parent / "r")}
    lookalike.train(options, resume=path, progress=SILENT)


def export(path: Path, run: Path) -> None:
    config = ExportConfig(model_name=str(path), out=str(path.parent / "x"))
    lookalike.export(config, progress=SILENT)


def ends_well(loader: Loader, path: Path, run: Path, what: str) -> bool:
    """Returns whether the loader took it; a refusal is one printable line of ours."""
    message = None
    try:
        loader(path, run)
    except LookalikeError as error:
        message = str(error)
    for name in ("e", "r", "x"):
        shutil.rmtree(path.parent / name, ignore_errors=True)
    if message is not None:
        assert message.isprintable(), what
        assert len(message) < 1500, what
    return message is None


def check_altered(
    loader: Loader, content: Any, run: Path, folder: Path, *, count: int, seed: int
) -> None:
    taken = []
    for what, altered in some(content, count, seed):
        path = folder / "altered.pth"
        torch.save(altered, path)
        taken.append(ends_well(loader, path, run, what))
    assert 0 < sum(taken) < len(taken)  # or this test could not fail


@pytest.mark.parametrize("loader", [evaluate, resume, export])
def test_one_altered_entry_is_refused_in_one_line_or_does_no_harm(
    loader: Loader, checkpoint: Path, run: Path, tmp_path: Path
) -> None:
    check_altered(loader, load(checkpoint), run, tmp_path, count=10, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("loader", [evaluate, resume, export])
def test_many_altered_entries_are_refused_in_one_line_or_do_no_harm(
    loader: Loader, seed: int, checkpoint: Path, run: Path, tmp_path: Path
) -> None:
    check_altered(loader, load(checkpoint), run, tmp_path, count=12, seed=100 + seed)


@pytest.mark.parametrize("loader", [evaluate, resume, export])
def test_a_part_that_is_missing_is_named(
    loader: Loader, checkpoint: Path, run: Path, tmp_path: Path
) -> None:
    whole = load(checkpoint)
    needed = ("epoch", "model", "model_state_dict") + (
        ("state", "config", "sampler_state_dict", "random_states") if loader is resume else ()
    )
    for name in needed:
        torch.save({k: v for k, v in whole.items() if k != name}, tmp_path / "part.pth")
        with pytest.raises(CheckpointError, match=name.removesuffix("_state_dict")):
            loader(tmp_path / "part.pth", run)


def test_a_model_without_its_run_is_a_model(checkpoint: Path, run: Path, tmp_path: Path) -> None:
    content = load(checkpoint)
    kept = ("format", "epoch", "model", "model_state_dict")
    torch.save({name: content[name] for name in kept}, tmp_path / "bare.pth")
    evaluate(tmp_path / "bare.pth", run)
    export(tmp_path / "bare.pth", run)
    with pytest.raises(CheckpointError, match="not a training checkpoint"):
        resume(tmp_path / "bare.pth", run)


def test_flipped_bits_are_found_or_change_nothing(checkpoint: Path, tmp_path: Path) -> None:
    whole, content = checkpoint.read_bytes(), read_checkpoint(checkpoint)
    rng, path, refused = random.Random(0), tmp_path / "flipped.pth", list[str]()
    # Most of a file are weights; names and sizes of its records are at its end.
    places = [rng.randrange(len(whole)) for _ in range(40)]
    places += [rng.randrange(len(whole) - 6000, len(whole)) for _ in range(40)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            assert_same_bits(read_checkpoint(path), content)
        except CheckpointError as error:
            refused.append(str(error))
    assert all(message.isprintable() for message in refused)
    assert len(refused) > 50


def test_a_flipped_bit_of_a_weight_is_told_as_what_it_is(checkpoint: Path, tmp_path: Path) -> None:
    damaged = bytearray(checkpoint.read_bytes())
    with zipfile.ZipFile(checkpoint) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    damaged[largest.header_offset + 400 + largest.file_size // 2] ^= 0x40
    (tmp_path / "one.pth").write_bytes(damaged)
    with pytest.raises(CheckpointError, match="does not have the checksum"):
        read_checkpoint(tmp_path / "one.pth")


def test_compressed_records_are_refused_before_they_are_unpacked(
    checkpoint: Path, tmp_path: Path
) -> None:
    with (
        zipfile.ZipFile(checkpoint) as archive,
        zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for record in archive.infolist():
            small.writestr(record.filename, archive.read(record))
    with pytest.raises(CheckpointError, match="is compressed"):
        read_checkpoint(tmp_path / "small.pth")


@pytest.mark.parametrize("name", ["../outside.txt", "/absolute.txt", "a/b.json", "x.py", "", "."])
@pytest.mark.parametrize("loader", [evaluate, resume, export])
def test_a_checkpoint_writes_no_file_of_another_name(
    loader: Loader, name: str, checkpoint: Path, run: Path, tmp_path: Path
) -> None:
    content = load(checkpoint)
    target = str(tmp_path / name.strip("/")) if name.startswith("/") else name
    content["model"]["side_files"][target] = "written by a checkpoint"
    inner = tmp_path / "inner"
    inner.mkdir()
    torch.save(content, inner / "one.pth")
    with pytest.raises(CheckpointError, match="side_files"):
        loader(inner / "one.pth", run)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["one.pth"]


def test_side_files_are_written_by_known_names_alone(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(LookalikeError, match="has no file"):
        write_side_files({"../config.json": "{}"}, tmp_path / "in")
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize(
    "hub_id", ["a/b)](http://x", "a\nb", "../../etc", "a/b/c", "é/b", "x" * 300]
)
def test_a_hub_id_that_the_hub_would_not_take_is_in_no_card(
    hub_id: str, checkpoint: Path, run: Path, tmp_path: Path
) -> None:
    content = load(checkpoint)
    content["model"]["hub_id"] = hub_id
    torch.save(content, tmp_path / "one.pth")
    with pytest.raises(CheckpointError, match="hub_id"):
        export(tmp_path / "one.pth", run)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vision_config": {"num_hidden_layers": 10**12}}, "num_hidden_layers"),
        ({"vision_config": {"hidden_size": 10**9}}, "weights|cannot build"),
        ({"text_config": {"vocab_size": 10**12}}, "weights|cannot build"),
        ({"model_type": "no-such-model"}, "cannot build"),
        ({"vision_config": {"attention_dropout": 7.5}}, "share from 0 to 1"),
    ],
)
def test_a_configuration_that_asks_for_all_memory_or_time_is_refused(
    settings: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    content = load(checkpoint)
    own = content["model"]["backbone_config"]
    for name, value in settings.items():
        own[name] = own[name] | value if isinstance(value, dict) else value
    torch.save(content, tmp_path / "one.pth")
    with pytest.raises(CheckpointError, match=message):
        CLIPEncoder(str(tmp_path / "one.pth"))


@pytest.mark.parametrize("place", ["model", "objective_state_dict"])
def test_a_small_file_that_stands_for_billions_of_values_is_refused(
    place: str, checkpoint: Path, run: Path, tmp_path: Path
) -> None:
    content = load(checkpoint)
    many: list[Any] = [1] * 10
    for _ in range(10):
        many = [many] * 10
    where = content["model"]["backbone_config"] if place == "model" else content[place]
    where["x"] = many
    torch.save(content, tmp_path / "one.pth")
    assert (tmp_path / "one.pth").stat().st_size < 2 * checkpoint.stat().st_size
    with pytest.raises(CheckpointError, match="has more than"):
        resume(tmp_path / "one.pth", run)


class FillsMemory:
    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (200_000_000,)


def test_a_call_that_fills_the_memory_is_not_made(checkpoint: Path, tmp_path: Path) -> None:
    torch.save(load(checkpoint) | {"more": FillsMemory()}, tmp_path / "one.pth")
    with pytest.raises(CheckpointError, match="more than tensors"):
        read_checkpoint(tmp_path / "one.pth")


@pytest.mark.parametrize("count", [1, 2])
def test_a_truncated_checkpoint_points_to_the_last_one_that_is_whole(
    count: int, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run / "run", tmp_path / "run")
    weights = tmp_path / "run/weights"
    good = (weights / "encoder_epoch_02.pth").read_bytes()
    (weights / "interrupted.pth").write_bytes(good[: len(good) // 2])
    if count == 2:
        (weights / "encoder_epoch_02.pth").write_bytes(good[:-100])
    with pytest.raises(CheckpointError, match=r"interrupted\.pth") as caught:
        lookalike.train({}, resume=tmp_path / "run", progress=SILENT)
    assert f"--resume {weights / f'encoder_epoch_0{3 - count}.pth'}" in str(caught.value)


def test_what_a_command_alone_wished_is_kept_nowhere(
    run: Path, checkpoint: Path, tmp_path: Path
) -> None:
    assert "overwrite" not in load(checkpoint)["config"]
    other = tmp_path / "other"
    shutil.copytree(run / "run", other)
    before = {path: path.read_bytes() for path in sorted(other.rglob("*")) if path.is_file()}
    content = load(checkpoint)
    content["config"]["overwrite"] = True  # as earlier versions kept it
    torch.save(content, tmp_path / "old.pth")
    options = {"num_epochs": 2, "out": str(other)}
    for path in (checkpoint, tmp_path / "old.pth"):
        with pytest.raises(OutputError, match="already holds a run's files"):
            lookalike.train(options, resume=path, progress=SILENT)
    assert before == {p: p.read_bytes() for p in sorted(other.rglob("*")) if p.is_file()}


def test_a_run_goes_on_in_the_folder_that_it_lies_in(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "run", tmp_path / "moved")
    result = lookalike.train({"num_epochs": 3}, resume=tmp_path / "moved", progress=SILENT)
    assert result.checkpoint == tmp_path / "moved/weights/encoder_epoch_03.pth"
    assert not (run / "run/weights/encoder_epoch_03.pth").exists()


def test_every_entry_of_a_checkpoint_can_be_altered(checkpoint: Path) -> None:
    """Or the tests above would say less than they seem to."""
    first = {path[0] for path in entries(load(checkpoint))}
    assert first == load(checkpoint).keys()
    assert config_from(TrainConfig, load(checkpoint)["config"]).num_epochs == 2
