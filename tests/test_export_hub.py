"""Uploading an export, against a hub that runs in the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.hub import TOKEN, FakeHub, fake_hub
from huggingface_hub import ModelCard, constants

import lookalike
from lookalike.commands.export import ExportResult
from lookalike.config import ExportConfig
from lookalike.errors import ConfigError, OutputError
from lookalike.progress import SilentProgress


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub, and this process told that it is the one."""
    with fake_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def push(model: Path, out: Path, **settings: Any) -> ExportResult:
    config = ExportConfig(
        model_name=str(model), out=str(out), **({"push_to_hub": "jane/shop-clip"} | settings)
    )
    return lookalike.export(config, progress=SilentProgress())


def is_private(asked: dict[str, Any]) -> bool:
    """In the words of newer and of older releases of the hub's client."""
    return asked.get("visibility") == "private" or asked.get("private") is True


def test_every_file_of_the_folder_arrives_in_a_repository_that_only_its_owner_sees(
    hub: FakeHub, tiny_clip: Path, tmp_path: Path
) -> None:
    result = push(tiny_clip, tmp_path / "out")
    assert result.url == f"{hub.url}/jane/shop-clip"
    assert list(hub.repositories) == ["jane/shop-clip"]
    assert is_private(hub.repositories["jane/shop-clip"])
    there = {path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
             for path in result.files}  # fmt: skip
    assert {"README.md", "model.safetensors", "config.json", "lookalike.json"} <= there.keys()
    assert hub.files == there
    card = ModelCard(hub.files["README.md"].decode())
    assert 'name = "jane/shop-clip"' in card.text
    assert card.data.to_dict()["library_name"] == "transformers"


def test_a_repository_can_be_public_and_of_an_organisation(
    hub: FakeHub, tiny_clip: Path, tmp_path: Path
) -> None:
    push(tiny_clip, tmp_path / "out", push_to_hub="shop/clip", private=False)
    assert not is_private(hub.repositories["shop/clip"])
    assert "README.md" in hub.files


def test_a_second_push_goes_to_the_same_repository(
    hub: FakeHub, tiny_clip: Path, tmp_path: Path
) -> None:
    push(tiny_clip, tmp_path / "out")
    result = push(tiny_clip, tmp_path / "out", overwrite=True)
    assert result.url == f"{hub.url}/jane/shop-clip"
    assert len(hub.repositories) == 1


@pytest.mark.parametrize(
    ("settings", "role", "message"),
    [
        ({"push_to_hub": "joan/clip"}, "write", r"joan/clip.*that of jane.*jane, shop"),
        ({}, "read", "can only read"),
    ],
)
def test_what_the_token_may_not_do_is_told_before_any_work(
    hub: FakeHub, tmp_path: Path, settings: dict[str, str], role: str, message: str
) -> None:
    hub.role = role
    with pytest.raises(ConfigError, match=message):
        push(tmp_path / "no-such-model.pth", tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
    assert hub.repositories == {}


def test_without_a_token_nothing_is_begun(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with pytest.raises(ConfigError, match=r"set HF_TOKEN, or log in once with `hf auth login`"):
        push(tmp_path / "no-such-model.pth", tmp_path / "out")
    assert hub.asked == []


def test_a_token_that_the_hub_does_not_know_is_told(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(OutputError, match="the hub refuses access"):
        push(tmp_path / "no-such-model.pth", tmp_path / "out")


def test_a_hub_that_cannot_be_reached_is_told_before_any_work(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OutputError, match=r"the hub refuses access: .*HF_HUB_OFFLINE"):
        push(tmp_path / "no-such-model.pth", tmp_path / "out")


def test_an_upload_that_fails_leaves_the_export_and_says_so(
    hub: FakeHub, tiny_clip: Path, tmp_path: Path
) -> None:
    hub.refuses_commits = True
    with pytest.raises(OutputError, match=r"cannot upload to jane/shop-clip: .*") as told:
        push(tiny_clip, tmp_path / "out")
    assert f"hf upload jane/shop-clip {tmp_path / 'out'}" in str(told.value)
    assert (tmp_path / "out" / "README.md").is_file()


@pytest.mark.parametrize(
    "name", ["clip", "jane/", "/clip", "a/b/c", "jane/-x", "jane/a..b", "j n/x"]
)
def test_what_is_no_name_of_a_repository_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected a repository on the hub as OWNER/NAME"):
        ExportConfig(push_to_hub=name)
