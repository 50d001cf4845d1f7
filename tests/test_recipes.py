"""The recipes that ship: each loads, is valid, tells its own command, and is in the wheel."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from lookalike.cli.main import main
from lookalike.config import TrainConfig
from lookalike.config.recipes import SHIPPED, find_recipe, read_recipe, shipped_text, summary
from lookalike.config.settings import config_from
from lookalike.errors import DataError

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_a_valid_configuration(name: str) -> None:
    config = config_from(TrainConfig, find_recipe(name))
    assert (config == TrainConfig()) == (name == "default")


def test_no_two_recipes_are_the_same() -> None:
    recipes = [config_from(TrainConfig, find_recipe(name)) for name in SHIPPED]
    assert all(recipes.count(one) == 1 for one in recipes)


def test_where_all_of_a_large_model_is_trained_fast_its_first_layers_are_trained_slowly() -> None:
    for name in SHIPPED:
        config = config_from(TrainConfig, find_recipe(name))
        if config.learning_rate > 2e-5 and config.lora_rank is None:
            assert config.layer_decay < 1, name
            assert config.learning_rate <= 5e-5, name


def test_the_recipes_that_ship_are_those_in_the_folder() -> None:
    folder = files("lookalike.config") / "shipped"
    assert sorted(one.name for one in folder.iterdir()) == sorted(f"{n}.yaml" for n in SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_begins_with_what_it_is_for_and_how_it_is_run(name: str) -> None:
    header = shipped_text(name).split("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in header)
    assert header[0] == f"# {summary(name)}"
    assert len(summary(name)) <= 66  # a line of the list, on a terminal of 80 columns
    parts = [line[2:].split(":")[0] for line in header[1:] if line[2:3].isalpha()]
    assert parts == ["Use it", "Hardware", "Time", "Expect", "Command"]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_command_in_a_recipe_runs_that_recipe(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = next(line for line in shipped_text(name).splitlines() if "Command:" in line)
    program, *words = shlex.split(line.partition("Command:")[2])
    assert program == "lookalike"
    assert main([*words, "--print-config"]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out, encoding="utf-8")
    given = {"train": "photos/train", "test": "photos/test"}
    expected = config_from(TrainConfig, find_recipe(name), given)
    assert config_from(TrainConfig, read_recipe(printed)) == expected


def test_a_flag_wins_over_a_shipped_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--recipe", "strong", "--learning-rate", "3e-6", "--print-config"]
    assert main(words) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert float(printed["learning_rate"]) == 3e-6
    assert printed["layer_decay"] == find_recipe("strong")["layer_decay"]


def test_a_shipped_name_is_the_shipped_recipe_wherever_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = find_recipe("strong")
    monkeypatch.chdir(tmp_path)
    for name in ("strong", "strong.yaml", "mine"):
        Path(name).write_text("seed: 7\n")
    assert find_recipe("strong") == shipped
    assert find_recipe("strong.yaml") == {"seed": 7}
    assert find_recipe("./strong") == {"seed": 7}
    assert find_recipe("mine") == {"seed": 7}


@pytest.mark.parametrize(
    ("name", "meant"),
    [("stron", "strong"), ("Large-Batch", "large-batch"), ("largebatch", "large-batch"),
     ("lowmem", "low-memory"), ("big-batch", "large-batch")],
)  # fmt: skip
def test_a_misspelt_recipe_names_the_nearest_and_all_there_are(name: str, meant: str) -> None:
    with pytest.raises(DataError) as told:
        find_recipe(name)
    assert str(told.value).startswith(f"there is no recipe {name!r}, and no file of that name; ")
    assert f"did you mean {meant!r}?" in str(told.value)
    assert ", ".join(SHIPPED) in str(told.value)


def test_a_name_like_no_recipe_lists_all_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    for words, what in (
        (["recipes", "zzz"], "there is no recipe 'zzz'."),
        (["train", "--recipe", "zzz"], "there is no recipe 'zzz', and no file of that name."),
    ):
        assert main(words) == 2
        assert capsys.readouterr().err == (
            f"lookalike: {what} Those that ship with Lookalike: default, quick, strong, "
            "keep-text, large-batch, low-memory\n"
        )


def test_only_what_ships_is_printed_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text("seed: 7\n")
    with pytest.raises(DataError, match="there is no recipe 'mine'"):
        shipped_text("mine")


def test_a_recipe_file_that_is_not_there_is_called_a_file() -> None:
    for name in ("no-such.yaml", "no-such-folder/strong"):
        with pytest.raises(DataError, match=r"cannot read the recipe .*No such file"):
            find_recipe(name)


def test_recipes_are_listed_each_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: len(SHIPPED)]] == list(SHIPPED)
    assert all(len(line) <= 80 for line in lines)


def test_a_recipe_is_printed_as_it_stands_in_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "low-memory"]) == 0
    assert capsys.readouterr().out == shipped_text("low-memory")


def test_recipes_are_read_by_programs_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == list(SHIPPED)
    assert document["quick"] == {"summary": summary("quick"), "settings": find_recipe("quick")}


def test_the_wheel_holds_every_recipe(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("lookalike-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in SHIPPED:
            text = archive.read(f"lookalike/config/shipped/{name}.yaml").decode()
            assert text == shipped_text(name)
