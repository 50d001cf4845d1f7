"""The options: defaults, what each may be, and recipes in and out."""

from __future__ import annotations

import dataclasses
import tempfile
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lookalike.config import (
    BenchConfig,
    CheckConfig,
    EmbedConfig,
    EvaluateConfig,
    ExportConfig,
    TrainConfig,
)
from lookalike.config.recipes import read_recipe
from lookalike.config.settings import ONE_TIME, changed_on_resume, config_from, format_recipe
from lookalike.errors import ConfigError, DataError, LookalikeError

# The table of the mission, written out again.
MISSION_DEFAULTS = {
    "model_name": "openai/clip-vit-large-patch14-336",
    "temperature": 0.07,
    "num_epochs": 1,
    "learning_rate": 1e-7,
    "n_classes_per_batch": 4,
    "n_samples_per_class": 2,
    "top_k": 10,
}

# Text that YAML takes for something else, or that needs care to be written in it.
AWKWARD_TEXT = [
    "no", "on", "null", "none", "~", "true", "1e5", "1e-7", "0x10", "12:30", "2024-01-01", "007",
    ".5", ".nan", "-", "- a", "#x", "a #b", "a#b", ": y", "a: b", "a:", "{a}", "[a]", "a, b", "*x",
    "&x", "!x", "!!int 3", "%x", "@x", "`x`", "|", ">", "?", "? x", "---", "...", "--- a", "'", '"',
    "it's", 'say "x"', "a\\b", "C:\\photos\\new", "\\\\server\\share", " a", "a ", "  ", "a  b",
    "Äpfel und Birnen", "日本", "عربى", "🐈.png", "e\u0301", "\u00a0", "\ufeffa", "a\ufeff",
    "\u200b", "=", "<<", "a" * 200, "word " * 60 + "end",
]  # fmt: skip
CONTROL_TEXT = ["a\nb", "a\n", "\n", "a\r\nb", "\r", "a\tb", "\t", "a\x85b", "a\u2028b", "a\x7f",
                "a\x1bb", "\udcff.png", "a\n\n # b: c"]  # fmt: skip


def round_trip(config: TrainConfig) -> TrainConfig:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yaml")
        path.write_bytes(format_recipe(config).encode("utf-8"))
        return config_from(TrainConfig, read_recipe(path))


def texts() -> st.SearchStrategy[str]:
    """Anything that can be a file's name, and what YAML stumbles over."""
    letters = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])
    any_text = st.sampled_from(AWKWARD_TEXT) | st.text(letters, min_size=1)
    # These words mean that an option is off, wherever it can be.
    return any_text.filter(lambda text: text.strip().lower() not in ("none", "off", "null"))


def train_configs() -> st.SearchStrategy[TrainConfig]:
    def numbers(low: float, high: float) -> st.SearchStrategy[float]:
        return st.floats(low, high, exclude_min=True)

    texts_or_none = st.none() | texts()
    tests = st.fixed_dictionaries({"test": texts_or_none}) | st.fixed_dictionaries(
        {"query": texts(), "gallery": texts()}
    )
    others = st.fixed_dictionaries(
        {
            "train": texts_or_none,
            "top_k": st.integers(1, 10**6),
            "model_name": texts(),
            "embedding": st.sampled_from(["auto", "projected", "pooled"]),
            "max_megapixels": numbers(0, 178),
            "eval_batch_size": st.integers(1, 65_536),
            "device": texts(),
            "precision": st.sampled_from(["auto", "bf16", "fp16", "fp32"]),
            "num_workers": st.just("auto") | st.integers(0),
            "out": texts(),
            "overwrite": st.booleans(),
            "n_classes_per_batch": st.integers(2, 65_536),
            "n_samples_per_class": st.integers(2, 65_536),
            "singletons": st.sampled_from(["exclude", "repeat"]),
            "augmentation": st.sampled_from(["crop-flip", "none"]),
            "min_crop_area": numbers(0, 1),
            "train_size": st.none() | numbers(0, 1) | st.integers(8, 10_000),
            "num_epochs": st.integers(0, 10**6),
            "learning_rate": numbers(0, 10),
            "temperature": st.floats(1e-4, 100),
            "weight_decay": st.floats(0, 1000),
            "max_grad_norm": st.none() | numbers(0, 1e9),
            "schedule": st.sampled_from(["constant", "cosine"]),
            "warmup_steps": st.floats(0, 1, exclude_max=True) | st.integers(1, 10**9),
            "gradient_checkpointing": st.booleans(),
            "compile": st.sampled_from(["auto", "on", "off"]),
            "seed": st.integers(0, 2**63 - 1),
        }
    )
    return st.builds(lambda a, b: TrainConfig(**a, **b), others, tests)


def test_the_defaults_are_those_of_the_mission() -> None:
    config = dataclasses.asdict(TrainConfig())
    assert {name: config[name] for name in MISSION_DEFAULTS} == MISSION_DEFAULTS
    evaluate = EvaluateConfig()
    assert (evaluate.model_name, evaluate.top_k) == (MISSION_DEFAULTS["model_name"], 10)
    assert (config["out"], config["precision"], config["device"]) == (".", "auto", "auto")
    assert config["overwrite"] is False


def test_a_configuration_is_frozen_and_knows_no_order() -> None:
    config = TrainConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.top_k = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        TrainConfig("photos")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("learning_rat", "learning_rate"),
        ("learningrate", "learning_rate"),
        ("n_classes", "n_classes_per_batch"),
        ("Temperature", "temperature"),
        ("epochs", "num_epochs"),
        ("topk", "top_k"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(key: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key '{key}'.*did you mean '{meant}'"):
        config_from(TrainConfig, {key: 1})


def test_a_key_like_no_other_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'xyzzy'.*learning_rate") as told:
        config_from(TrainConfig, {"xyzzy": 1})
    assert "did you mean" not in str(told.value)


def test_a_later_choice_of_test_images_undoes_an_earlier_one() -> None:
    sides = {"query": "q", "gallery": "g"}
    config = config_from(TrainConfig, {"test": "t"}, sides)
    assert (config.test, config.query, config.gallery) == (None, "q", "g")
    config = config_from(TrainConfig, sides, {"test": "t"})
    assert (config.test, config.query, config.gallery) == ("t", None, None)
    config = config_from(TrainConfig, sides, {"gallery": "other", "test": None})
    assert (config.test, config.query, config.gallery) == (None, "q", "other")
    with pytest.raises(ConfigError, match="either test, or query and gallery"):
        config_from(TrainConfig, {"test": "t", **sides})


def test_options_of_training_are_unknown_to_evaluation() -> None:
    with pytest.raises(ConfigError, match="unknown key 'learning_rate'"):
        config_from(EvaluateConfig, {"learning_rate": 1e-5})


def test_later_mappings_win_and_dashes_are_underscores() -> None:
    config = config_from(
        TrainConfig,
        {"learning_rate": 1e-3, "top_k": 3, "seed": 5},
        {"learning-rate": 1e-4, "top_k": 7},
        {"top-k": 9},
    )
    assert (config.learning_rate, config.top_k, config.seed) == (1e-4, 9, 5)


def test_two_names_of_one_option_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("top-k: 3\nseed: 1\ntop_k: 5\n")
    with pytest.raises(ConfigError, match="'top-k' and 'top_k' are one option"):
        config_from(TrainConfig, read_recipe(path))


@pytest.mark.parametrize(
    ("name", "given_value", "value"),
    [
        ("learning_rate", "2e-5", 2e-5),
        ("learning_rate", " 0.5 ", 0.5),
        ("learning_rate", 1, 1.0),
        ("max_grad_norm", "none", None),
        ("max_grad_norm", "None", None),
        ("max_grad_norm", "off", None),
        ("max_grad_norm", None, None),
        ("max_grad_norm", "2", 2.0),
        ("overwrite", "true", True),
        ("overwrite", "No", False),
        ("overwrite", True, True),
        ("num_workers", "auto", "auto"),
        ("num_workers", "3", 3),
        ("num_workers", 0, 0),
        ("num_epochs", "3", 3),
        ("num_epochs", 3.0, 3),
        ("schedule", "cosine", "cosine"),
        ("compile", "on", "on"),
        ("compile", True, "on"),  # a recipe's bare `on`
        ("compile", False, "off"),
        ("train", Path("photos/train"), str(Path("photos/train"))),
        ("train", "none", None),
        ("test", "off", None),
        ("out", "none", "none"),
        ("train", "./none", "./none"),
        ("train", " spaces ", " spaces "),
        ("seed", 9007199254740993, 9007199254740993),
        ("seed", "9007199254740993", 9007199254740993),
    ],
)
def test_values_are_taken_in_every_form_they_come_in(
    name: str, given_value: Any, value: Any
) -> None:
    result = getattr(config_from(TrainConfig, {name: given_value}), name)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("learning_rate", "fast", "a number"),
        ("learning_rate", True, "a number"),
        ("learning_rate", None, "a number"),
        ("learning_rate", [1e-5], "a number"),
        ("num_epochs", "1.5", "a whole number"),
        ("num_epochs", 1.5, "a whole number"),
        ("num_epochs", False, "a whole number"),
        ("num_epochs", "inf", "a whole number"),
        ("num_epochs", float("nan"), "a whole number"),
        ("num_epochs", "", "a whole number"),
        ("num_workers", "many", "a whole number or auto"),
        ("max_grad_norm", "strong", "a number or none"),
        ("overwrite", "perhaps", "true or false"),
        ("overwrite", 1, "true or false"),
        ("schedule", "linear", "constant or cosine"),
        ("schedule", None, "constant or cosine"),
        ("precision", "fp64", "auto or bf16 or fp16 or fp32"),
        ("train", 2024, "text or none"),
        ("out", None, "text"),
        ("model_name", {"a": 1}, "text"),
    ],
)
def test_a_value_of_the_wrong_type_says_what_was_expected(
    name: str, value: Any, expected: str
) -> None:
    with pytest.raises(ConfigError) as told:
        config_from(TrainConfig, {name: value})
    assert str(told.value).startswith(f"{name} is {value!r}; expected {expected}")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("top_k", 1, 0),
        ("n_classes_per_batch", 2, 1),
        ("n_samples_per_class", 2, 1),
        ("num_epochs", 0, -1),
        ("learning_rate", 1e-300, 0.0),
        ("learning_rate", 1e-300, -1e-5),
        ("temperature", 1e-4, 0.0),
        ("weight_decay", 0.0, -0.1),
        ("max_grad_norm", 1e-9, 0.0),
        ("warmup_steps", 0.0, -0.5),
        ("min_crop_area", 1.0, 1.01),
        ("min_crop_area", 0.01, 0.0),
        ("train_size", 0.01, 0.0),
        ("train_size", 8, -8.0),
        ("max_megapixels", 178.0, 178.1),
        ("max_megapixels", 0.1, 0.0),
        ("eval_batch_size", 1, 0),
        ("num_workers", 0, -1),
        ("seed", 0, -1),
        ("seed", 2**63 - 1, 2**63),
    ],
)
def test_every_number_has_its_range(name: str, allowed: float, refused: float) -> None:
    assert getattr(config_from(TrainConfig, {name: allowed}), name) == allowed
    with pytest.raises(ConfigError, match=rf"{name} is {refused}; it must be (above|at) ?"):
        config_from(TrainConfig, {name: refused})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", float("nan"), float("inf"), "1e999"])
@pytest.mark.parametrize(
    "name",
    ["learning_rate", "temperature", "weight_decay", "max_grad_norm", "min_crop_area",
     "max_megapixels", "train_size"],
)  # fmt: skip
def test_no_number_is_infinite_or_not_a_number(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} is -?(nan|inf); it must be"):
        config_from(TrainConfig, {name: value})


@pytest.mark.parametrize("given", ["112", 112, 112.0, "0.5", 0.5, 1, "off", 8])
def test_a_size_for_training_is_a_share_or_whole_px(given: Any) -> None:
    size = config_from(TrainConfig, {"train_size": given}).train_size
    assert size == (None if given == "off" else float(given))
    assert size is None or isinstance(size, int) is (size > 1)


@pytest.mark.parametrize("refused", [1.5, "1.5", 100.5, 7, 2])
def test_a_size_for_training_between_share_and_px_is_refused(refused: Any) -> None:
    with pytest.raises(ConfigError, match=rf"train_size is {refused}; expected .*, 8 or more"):
        config_from(TrainConfig, {"train_size": refused})


@pytest.mark.parametrize("make", [TrainConfig, EvaluateConfig])
def test_test_images_are_given_in_one_way(make: Callable[..., Any]) -> None:
    for contradiction in (
        {"test": "t", "query": "q", "gallery": "g"},
        {"test": "t", "query": "q"},
        {"test": "t", "gallery": "g"},
    ):
        with pytest.raises(ConfigError, match="either test, or query and gallery"):
            make(**contradiction)
    with pytest.raises(ConfigError, match="query is given without gallery"):
        make(query="q")
    with pytest.raises(ConfigError, match="gallery is given without query"):
        make(gallery="g")
    assert make(query="q", gallery="g").gallery == "g"
    assert make(test="t").test == "t"


@settings(deadline=None)
@given(train_configs())
@example(TrainConfig())
@example(TrainConfig(test="t", max_grad_norm=None, num_workers=0, learning_rate=2e-5, seed=2**62))
def test_a_recipe_brings_back_the_whole_configuration(config: TrainConfig) -> None:
    # What one command wished is in no recipe.
    assert round_trip(config) == dataclasses.replace(config, overwrite=False)


@pytest.mark.parametrize("text", AWKWARD_TEXT + CONTROL_TEXT)
def test_a_recipe_brings_back_awkward_text(text: str) -> None:
    config = TrainConfig(train=text, out=text, seed=3)
    assert round_trip(config) == config


def test_a_recipe_names_every_option_once_under_its_own_line() -> None:
    lines = format_recipe(TrainConfig()).splitlines()
    keys = [line.partition(":")[0] for line in lines if line and not line.startswith("#")]
    options = {option.name for option in dataclasses.fields(TrainConfig)}
    assert sorted(keys) == sorted(options - ONE_TIME)
    assert {"overwrite"} == ONE_TIME
    assert "learning_rate: 1e-07" in format_recipe(TrainConfig())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("learning_rate: 2e-5\ntop-k: 3\n", {"learning_rate": 2e-5, "top_k": 3}),
        ("max_grad_norm: null\noverwrite: yes\n", {"max_grad_norm": None, "overwrite": True}),
        ("\ufefftop_k: 3\r\nseed: 4\r\n", {"top_k": 3, "seed": 4}),
        ("", {}),
        ("# nothing but a remark\n", {}),
    ],
)
def test_a_recipe_written_by_hand_is_read(
    tmp_path: Path, content: str, expected: dict[str, Any]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content.encode("utf-8"))
    assert config_from(TrainConfig, read_recipe(path)) == TrainConfig(**expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- learning_rate\n- 2e-5\n", "holds a list"),
        (b"learning_rate 2e-5\n", "holds a str"),
        (b"7\n", "holds a int"),
        (b"train: [a\nout: b\n", "is not YAML"),
        (b"a: b: c\n", "is not YAML"),
        (b"train: \tx: 'y\n", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"out: \x01\n", "is not YAML"),
        (b"out: !!python/object/apply:os.getcwd []\n", "uses a tag"),
        (b"out: 2024-13-45\n", "is not YAML"),
    ],
)
def test_a_recipe_that_is_no_mapping_is_refused_in_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as told:
        read_recipe(path)
    assert "recipe.yaml" in str(told.value)
    assert len(str(told.value).splitlines()) == 1


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mine\.yaml: No such file"):
        read_recipe(tmp_path / "mine.yaml")
    with pytest.raises(LookalikeError, match="cannot read the recipe"):
        read_recipe(tmp_path)


def test_settings_that_change_what_is_learned_are_named_on_resume() -> None:
    saved = dataclasses.asdict(TrainConfig(train="a", learning_rate=1e-3))
    assert changed_on_resume(saved, TrainConfig(train="a", learning_rate=1e-3)) == []
    now = TrainConfig(train="a", learning_rate=1e-4, temperature=0.1, singletons="repeat")
    assert changed_on_resume(saved, now) == [
        "singletons: exclude -> repeat",
        "temperature: 0.07 -> 0.1",
        "learning_rate: 0.001 -> 0.0001",
    ]


def test_settings_that_do_not_touch_learning_are_free_on_resume() -> None:
    saved = dataclasses.asdict(TrainConfig())
    now = TrainConfig(
        train="moved", query="q", gallery="g", top_k=3, out="o", overwrite=True, num_epochs=9,
        eval_batch_size=1, device="cpu", num_workers=0, gradient_checkpointing=True,
        batch_memory=2, keep=1, patience=2, precision="bf16", track="tensorboard",
    )  # fmt: skip
    assert changed_on_resume(saved, now) == []


def test_the_length_of_a_cosine_cannot_change_on_resume() -> None:
    saved = dataclasses.asdict(TrainConfig(schedule="cosine"))
    changed = changed_on_resume(saved, TrainConfig(schedule="cosine", num_epochs=2))
    assert changed == ["num_epochs: 1 -> 2"]


def test_a_run_saved_before_an_option_existed_goes_on_with_its_default() -> None:
    saved = dataclasses.asdict(TrainConfig())
    del saved["weight_decay"]
    assert changed_on_resume(saved, TrainConfig()) == []
    assert changed_on_resume(saved, TrainConfig(weight_decay=0.5)) == ["weight_decay: 0.01 -> 0.5"]


CONFIGURATIONS = [TrainConfig, EvaluateConfig, EmbedConfig, CheckConfig, BenchConfig, ExportConfig]
ABSURD: list[Any] = [
    "9" * 40, "9" * 5000, 10**40, 10**5000, "1e300", "1e400", "inf", "-inf", "nan", "+-5", "--5",
    "-" + "9" * 5000, -(10**40), 1e300, float("inf"), "1e", "0x7fffffff",
]  # fmt: skip


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_no_number_is_without_bounds(configuration: type) -> None:
    hints = typing.get_type_hints(configuration)
    for option in dataclasses.fields(configuration):
        kinds = typing.get_args(hints[option.name]) or (hints[option.name],)
        if not {int, float}.intersection(kinds) or option.name == "num_workers":
            continue
        for value in ABSURD:
            with pytest.raises(ConfigError, match=rf"^{option.name} is ") as told:
                configuration(**{option.name: value})
            assert len(str(told.value)) < 300
            assert str(told.value).isprintable()


def test_a_bound_says_why_more_is_of_no_use() -> None:
    with pytest.raises(ConfigError) as told:
        TrainConfig(cross_batch_memory=100_000_000)
    assert str(told.value) == (
        "cross_batch_memory is 100000000; it must be at most 10,000,000: all of them are in "
        "memory, as float32"
    )
