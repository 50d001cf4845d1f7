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
from lookalike.errors import ConfigError, DataError

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


def refused(path: Path, content: bytes) -> str:
    """The error of a recipe that cannot be used: one line that can be shown, and not a long one."""
    path.write_bytes(content)
    with pytest.raises(ConfigError) as told:
        config_from(TrainConfig, read_recipe(path))
    message = str(told.value)
    assert message.isprintable()
    assert len(message) < 1_000
    return message


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_a_recipe_is_read_in_any_form_of_unicode(tmp_path: Path, encoding: str) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_bytes("# ü\r\ntrain: photos/käse\r\nlearning_rate: 2e-5\r\n".encode(encoding))
    assert read_recipe(recipe) == {"train": "photos/käse", "learning_rate": "2e-5"}


def test_a_recipe_in_windows_1252_is_refused_as_such(tmp_path: Path) -> None:
    message = refused(tmp_path / "mine.yaml", "train: photos/käse\n".encode("cp1252"))
    assert "not UTF-8, but perhaps Windows-1252" in message


LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40)
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LAUGHS, "uses an anchor or alias ('a0')"),
        (LAUGHS + "learning_rate: *a39\n", "uses an anchor or alias"),
        ("learning_rate: &x 1\n", "anchor"),
        ("a: &a\n  <<: *a\n", "anchor"),
        ("learning_rate: " + "[" * 100_000, "nested more than 3 deep"),
        ("learning_rate: " + "{a: " * 100_000, "nested more than 3 deep"),
        ("- " * 100_000, "nested more than 3 deep"),
        ("\n".join(" " * i + f"a{i}:" for i in range(500)), "nested more than 3 deep"),
        ("? " * 1_000, "nested more than 3 deep"),
        ("learning_rate: 1\nseed: 2\nlearning_rate: 3\n", "gives 'learning_rate' 2 times"),
        ("learning_rate: " + "9" * 5_000, "5,000 characters"),
        ("learning_rate: '" + "\x85x" * 5_000 + "'", "characters"),
        ("learning_rate: [" + "x, " * 1_000 + "]", "learning_rate is ['x', 'x',"),
        ("learning_rate: {a: {b: c}}", "expected a number"),
        ("\u200b\u202elearning_rate: 1\n", "unknown key"),
        ("\"\\e[31mx\": 1\n", "unknown key"),
        ("!!python/object/apply:os.system ['true']\n", "uses a tag"),
        ("learning_rate: !x\x1b[31m 1\n", "is not YAML"),
        ('seed: !!int ""\n', "uses a tag"),
        ("report: !!bool maybe\n", "uses a tag"),
        ("out: !!timestamp today\n", "uses a tag"),
        ("seed: 2024-13-45\n", "is not YAML"),
        ("seed: 1:2:3:4e400\n", "seed is"),
        ("a: 1\n---\nb: 2\n", "is not YAML"),
        ("[]", "holds a list"),
        ("7", "holds a int"),
        ("x" * 2_000_000, "more than 1,048,576 bytes"),
        ("k: " + "\t" * 100, "is not YAML"),
    ],
)  # fmt: skip
def test_what_no_recipe_holds_is_refused_in_a_line(tmp_path: Path, text: str, told: str) -> None:
    assert told in refused(tmp_path / "mine.yaml", text.encode())
