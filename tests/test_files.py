"""Files appear whole or not at all, and every name can be shown."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
import torch
from helpers.limits import disk_with_room_for, posix_only
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike import files
from lookalike.config import TrainConfig
from lookalike.data.images import ImageSet
from lookalike.data.sampler import BalancedBatchSampler
from lookalike.errors import LookalikeError, OutputError
from lookalike.files import (
    does_not_exist,
    shown,
    writable_folder,
    write_folder_whole,
    write_json,
    write_text,
    write_whole,
    written_together,
)
from lookalike.model.encoder import CLIPEncoder
from lookalike.progress import SilentProgress
from lookalike.runtime.device import make_runtime
from lookalike.training.checkpoints.folder import RunFolder
from lookalike.training.checkpoints.saving import Checkpoints, write_checkpoint
from lookalike.training.data import TrainingImages
from lookalike.training.history import TrainingState
from lookalike.training.losses.supcon import SupConLoss
from lookalike.training.step.step import TrainingStep


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def writer_of(content: bytes) -> Callable[[IO[bytes]], None]:
    def write(file: IO[bytes]) -> None:
        file.write(content)

    return write


def writer_that_fails(error: BaseException) -> Callable[[IO[bytes]], None]:
    def write(file: IO[bytes]) -> None:
        file.write(b"half of the new")
        file.flush()
        raise error

    return write


def test_a_new_file_is_whole_and_alone_in_folders_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    write_whole(path, writer_of(b"all of it"))
    assert path.read_bytes() == b"all of it"
    assert names_in(path.parent) == ["file.bin"]


def test_a_file_is_replaced_only_after_all_of_the_new_one_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    seen: list[tuple[str, bytes]] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        seen.append(("fsync", path.read_bytes()))
        fsync(descriptor)

    def watched_replace(source: Any, target: Any) -> None:
        assert Path(source).read_bytes() == b"new"
        assert Path(source).parent == path.parent
        seen.append(("replace", path.read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_whole(path, writer_of(b"new"))
    assert seen[:2] == [("fsync", b"old"), ("replace", b"old")]
    if os.name == "posix":
        assert seen[2:] == [("fsync", b"new")]  # of the folder, which holds the new name
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("there_before", [True, False])
@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), ValueError("no"), KeyboardInterrupt()],
)
def test_a_writer_that_fails_half_way_changes_nothing(
    tmp_path: Path, error: BaseException, there_before: bool
) -> None:
    path = tmp_path / "file.bin"
    if there_before:
        path.write_bytes(b"old")
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as told:
        write_whole(path, writer_that_fails(error))
    assert names_in(tmp_path) == (["file.bin"] if there_before else [])
    if there_before:
        assert path.read_bytes() == b"old"
    if isinstance(error, OSError):
        assert told.value.__cause__ is error
    else:
        assert told.value is error


def test_a_rename_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: Any, target: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(OutputError, match="Permission denied"):
        write_whole(path, writer_of(b"new"))
    assert names_in(tmp_path) == ["file.bin"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free some room or choose another disk with --out"),
        (errno.EFBIG, "Free some room or choose another disk with --out"),
        (errno.EACCES, "Choose a folder you may write to with --out"),
        (errno.EROFS, "Choose a folder you may write to with --out"),
        (errno.ENOTDIR, "Choose a folder, not a file, with --out"),
        (errno.EIO, "Choose another folder with --out"),
    ],
)
def test_what_went_wrong_is_said_with_what_to_do(tmp_path: Path, number: int, advice: str) -> None:
    path = tmp_path / "file\u200b.bin"
    with pytest.raises(OutputError) as told:
        write_whole(path, writer_that_fails(OSError(number, os.strerror(number))))
    message = str(told.value)
    assert message.startswith("cannot write ")
    assert "file\\u200b.bin" in message
    assert os.strerror(number) in message
    assert advice in message
    assert len(message.splitlines()) == 1
    assert isinstance(told.value, LookalikeError)
    assert isinstance(told.value, OSError)


def test_a_file_cannot_be_written_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"mine")
    for path in (tmp_path / "notes.txt" / "a.json", tmp_path / "notes.txt" / "b" / "a.json"):
        with pytest.raises(OutputError, match="cannot write"):
            write_json(path, {})
    with pytest.raises(OutputError, match="Choose a folder, not a file"):
        writable_folder(tmp_path / "notes.txt")
    with pytest.raises(OutputError, match="Choose a folder, not a file"):
        writable_folder(tmp_path / "notes.txt" / "b")
    assert (tmp_path / "notes.txt").read_bytes() == b"mine"


def test_a_name_too_long_for_the_disk_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_json(tmp_path / ("a" * 300 + ".json"), {})
    assert names_in(tmp_path) == []


@posix_only
def test_a_folder_without_permission_is_refused_with_advice(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("permissions do not bind the superuser")
    locked = tmp_path / "locked"
    locked.mkdir()
    (locked / "file.json").write_bytes(b"old")
    locked.chmod(0o500)
    try:
        for act in (lambda: writable_folder(locked), lambda: write_json(locked / "file.json", {})):
            with pytest.raises(OutputError, match="Choose a folder you may write to"):
                act()
        assert (locked / "file.json").read_bytes() == b"old"
        assert names_in(locked) == ["file.json"]
    finally:
        locked.chmod(0o700)


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert writable_folder(folder) == folder
    assert names_in(folder) == []
    writable_folder(folder)


@posix_only
def test_a_full_disk_leaves_the_old_json(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"old": 1})
    before = path.read_bytes()
    with (
        disk_with_room_for(20_000),
        pytest.raises(OutputError, match="Free some room or choose another disk with --out"),
    ):
        write_json(path, {"new": "x" * 100_000})
    assert path.read_bytes() == before
    assert names_in(tmp_path) == ["results.json"]


@posix_only
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    path = tmp_path / "weights" / "encoder_epoch_01.pth"
    learner = TrainingStep(
        encoder, SupConLoss(), torch.optim.AdamW(encoder.parameters()),
        make_runtime("cpu", "fp32", 0), chunk_size=4, max_grad_norm=None,
    )  # fmt: skip

    images = TrainingImages(ImageSet(tmp_path, [], []), [], torch.tensor([]), [], "f")
    sampler: Any = BalancedBatchSampler([0, 0, 1, 1], 2, 2)
    data: Any = SimpleNamespace(images=images, sampler=sampler)
    config = TrainConfig(out=str(tmp_path))
    folder = RunFolder(config, None)
    checkpoints = Checkpoints(config, folder, learner, data, None, SilentProgress())

    def save() -> None:
        checkpoints.save_epoch(TrainingState(run="r", epoch=1, loss=0.5))

    save()
    before = path.read_bytes()
    for room in (0, 1_000, len(before) // 2, len(before) - 1):
        with (
            disk_with_room_for(room),
            pytest.raises(OutputError, match=r"encoder_epoch_01\.pth.*--out") as told,
        ):
            save()
        assert "Free some room" in str(told.value)
        assert os.strerror(errno.EFBIG) in str(told.value)  # not what torch's writer makes of it
        assert len(str(told.value).splitlines()) == 1
        assert path.read_bytes() == before
        assert names_in(path.parent) == ["encoder_epoch_01.pth"]
    with disk_with_room_for(len(before) + 100_000):
        save()
    assert torch.load(path, weights_only=True)["epoch"] == 1


def test_ctrl_c_within_the_writing_of_a_checkpoint_is_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lookalike.files.os.fsync", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "a.pth", {"epoch": 1})

    stopping = SimpleNamespace(write=stopped, flush=lambda: None)
    monkeypatch.setattr(
        "lookalike.training.checkpoints.saving.write_whole", lambda _, write: write(stopping)
    )
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "a.pth", {"epoch": torch.zeros(9)})
    assert names_in(tmp_path) == []


@posix_only
def test_an_error_names_the_file_as_it_would_have_been(tmp_path: Path) -> None:
    out = tmp_path / "ou\nt"
    with (
        disk_with_room_for(10),
        pytest.raises(OutputError) as together,
        written_together(out, "results") as folder,
    ):
        write_text(folder / "results" / "metrics.json", "x" * 100)
    with disk_with_room_for(10), pytest.raises(OutputError) as whole:
        write_folder_whole(out / "export", lambda new: write_text(new / "card.md", "x" * 100))
    for told, name in ((together, "results/metrics.json"), (whole, "export/card.md")):
        start = f"cannot write {tmp_path}/ou\\nt/{name}: "
        assert str(told.value).startswith(start + os.strerror(errno.EFBIG))


def file_names() -> st.SearchStrategy[str]:
    """What Python makes of any bytes in a file's name: text, and lone surrogates for the rest."""
    bad_bytes = st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"])
    return st.text(st.characters(exclude_categories=["Cs"]) | bad_bytes)


@pytest.fixture(scope="module")
def folder_for_all_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json")


@settings(deadline=None)
@given(st.dictionaries(file_names(), st.lists(file_names(), max_size=3), max_size=3))
def test_any_file_name_is_written_as_utf_8_and_reads_back(
    folder_for_all_examples: Path, document: dict[str, list[str]]
) -> None:
    path = folder_for_all_examples / "names.json"
    write_json(path, document)
    assert json.loads(path.read_bytes().decode("utf-8", errors="strict")) == document


def test_a_lone_surrogate_is_written_as_its_escape_and_the_rest_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    write_json(path, {"Kätzchen\\\udcff.png": ["日本.png"]})
    text = path.read_bytes().decode("utf-8")
    assert text == '{\n  "Kätzchen\\\\\\udcff.png": [\n    "日本.png"\n  ]\n}\n'
    assert json.loads(text) == {"Kätzchen\\\udcff.png": ["日本.png"]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_never_holds_what_is_no_number(tmp_path: Path, value: float) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"mAP": 0.5})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"mAP": value})
    assert path.read_bytes() == before
    assert names_in(tmp_path) == ["metrics.json"]


def folder_writer(**files: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, content in files.items():
            (folder / "inner").mkdir(exist_ok=True)
            (folder / "inner" / name).write_bytes(content)

    return write


def test_a_folder_appears_and_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new/folder"
    write_folder_whole(folder, folder_writer(a=b"1", b=b"2"))
    assert names_in(folder / "inner") == ["a", "b"]
    write_folder_whole(folder, folder_writer(c=b"3"))
    assert names_in(folder / "inner") == ["c"]
    assert names_in(tmp_path / "new") == ["folder"]


@pytest.mark.parametrize("there_before", [True, False])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_folder_that_cannot_be_finished_changes_nothing(
    tmp_path: Path, error: BaseException, there_before: bool
) -> None:
    if there_before:
        write_folder_whole(tmp_path / "folder", folder_writer(a=b"old"))

    def write(folder: Path) -> None:
        folder_writer(a=b"new")(folder)
        raise error

    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_folder_whole(tmp_path / "folder", write)
    assert names_in(tmp_path) == (["folder"] if there_before else [])
    if there_before:
        assert (tmp_path / "folder/inner/a").read_bytes() == b"old"


def test_files_written_together_replace_all_earlier_ones(tmp_path: Path) -> None:
    for name in ("a", "b", "other"):
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / name).write_text("old")
    with written_together(tmp_path, "results") as folder:
        for name in ("a", "b"):
            write_whole(folder / "results" / name, writer_of(b"new"))
        assert (tmp_path / "results/a").read_text() == "old"
    content = {path.name: path.read_text() for path in (tmp_path / "results").iterdir()}
    assert content == {"a": "new", "b": "new", "other": "old"}


def test_files_written_together_never_lie_beside_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, replace = tmp_path / "results", os.replace
    seen = []
    for number in range(3):
        write_whole(results / str(number), writer_of(b"old"))

    def watched(source: Any, target: Any) -> None:
        seen.append([path.read_bytes() for path in results.iterdir() if path.is_file()])
        replace(source, target)

    with written_together(tmp_path, "results") as folder:
        for number in range(3):
            write_whole(folder / "results" / str(number), writer_of(b"new"))
        monkeypatch.setattr(os, "replace", watched)
    assert seen == [[], [b"new"], [b"new"] * 2]


def test_files_written_together_are_all_in_place_where_ctrl_c_comes_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, replace = tmp_path / "results", os.replace
    for name in ("a", "b", "outdated"):
        write_whole(results / name, writer_of(b"old"))
    stops = iter([False, True, False])

    def stopped(source: Any, target: Any) -> None:
        replace(source, target)
        if next(stops):
            raise KeyboardInterrupt

    def write() -> None:
        with written_together(tmp_path, "results", outdated=[results / "outdated"]) as folder:
            for name in ("a", "b", "c"):
                write_whole(folder / "results" / name, writer_of(b"new"))
            monkeypatch.setattr(os, "replace", stopped)

    with pytest.raises(KeyboardInterrupt):
        write()
    found = {path.name: path.read_bytes() for path in results.iterdir()}
    assert found == dict.fromkeys("abc", b"new")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_files_that_cannot_be_written_together_change_nothing(
    tmp_path: Path, error: BaseException
) -> None:
    write_whole(tmp_path / "results" / "a", writer_of(b"old"))
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt

    def write() -> None:
        with written_together(tmp_path, "results") as folder:
            write_whole(folder / "results" / "a", writer_of(b"new"))
            raise error

    with pytest.raises(expected):
        write()
    assert names_in(tmp_path / "results") == ["a"]
    assert (tmp_path / "results" / "a").read_bytes() == b"old"


def test_a_folder_that_cannot_take_its_place_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder_whole(tmp_path / "folder", folder_writer(a=b"old"))
    replace = os.replace

    def refused(source: Any, target: Any) -> None:
        if str(source).endswith("-tmp"):
            raise PermissionError(errno.EACCES, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refused)
    monkeypatch.setattr(files, "_exchange", lambda *_: False)  # as on a disk that cannot
    with pytest.raises(OutputError, match="Permission denied"):
        write_folder_whole(tmp_path / "folder", folder_writer(a=b"new"))
    assert names_in(tmp_path) == ["folder"]
    assert (tmp_path / "folder/inner/a").read_bytes() == b"old"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("renames", [1, 2, 3])
@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_process_killed_while_folders_change_places_leaves_one_of_them_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool, renames: int
) -> None:
    folder = tmp_path / "folder"
    write_folder_whole(folder, folder_writer(a=b"old"))
    done = 0

    def killed_after(rename: Callable[..., Any]) -> Callable[..., Any]:
        def killed(*names: Any) -> Any:
            nonlocal done
            result = rename(*names)
            done += 1
            if done == renames:
                os._exit(9)
            return result

        return killed

    real = files._exchange if can_exchange else lambda *_: False
    if not (child := os.fork()):
        files._exchange, os.replace = killed_after(real), killed_after(os.replace)
        write_folder_whole(folder, folder_writer(a=b"new"))
        os._exit(0)
    os.waitpid(child, 0)
    if can_exchange:
        assert (folder / "inner/a").read_bytes() == b"new"

    def fails(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    with pytest.raises(OutputError):  # the next one finds whichever was there
        write_folder_whole(folder, fails)
    assert (folder / "inner/a").read_bytes() in (b"old", b"new")


def test_the_files_of_a_folder_are_flushed_before_it_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        seen.append((tmp_path / "folder").exists())

    monkeypatch.setattr(os, "fsync", watched)
    write_folder_whole(tmp_path / "folder", folder_writer(a=b"1", b=b"2"))
    assert seen[:2] == [False, False]


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=[])))
def test_any_name_is_shown_as_one_printable_line(name: str) -> None:
    text = shown(name)
    assert text.isprintable()
    text.encode("utf-8")
    assert len(text.splitlines()) <= 1
    if name.isprintable():
        assert text == name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Äpfel/日本 🐈.png", "Äpfel/日本 🐈.png"),
        ("a\nb\tc\x1b[31m", "a\\nb\\tc\\x1b[31m"),
        ("\udcff.png", "\\udcff.png"),
        ("a\u2028b\u200b", "a\\u2028b\\u200b"),
    ],
)
def test_what_cannot_be_shown_is_shown_as_its_escape(name: str, text: str) -> None:
    assert shown(name) == text
    assert shown(Path(name)) == text.replace("/", os.sep)


def test_a_name_longer_than_any_disk_has_does_not_exist(tmp_path: Path) -> None:
    assert "does not exist" in does_not_exist(tmp_path / ("x" * 5000))
