"""Results beside each other: what compares, what is refused, and the paired tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import lookalike as command
from helpers.photos import write_tree
from helpers.runs import Settings

import lookalike
from lookalike.commands.compare import compare
from lookalike.config import EvaluateConfig
from lookalike.config.settings import config_from
from lookalike.errors import ConfigError, DataError
from lookalike.evaluation.metrics import headline
from lookalike.progress import SilentProgress


def evaluate(settings: dict[str, Any]) -> Path:
    known = {k: v for k, v in settings.items() if k not in ("train", "learning_rate")}
    result = lookalike.evaluate(config_from(EvaluateConfig, known), progress=SilentProgress())
    return result.files[1]


@pytest.fixture(scope="module")
def two_documents(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two results of one protocol, the second of them wrong in its first query."""
    folder = tmp_path_factory.mktemp("two_documents")
    images = write_tree(folder / "images", {"a": 4, "b": 4, "c": 4})
    config = EvaluateConfig(test=str(images), model_name=str(tiny_clip), out=str(folder),
                            num_workers=0, device="cpu", report=False)  # fmt: skip
    path = lookalike.evaluate(config, progress=SilentProgress()).files[1]
    texts = []
    for hits in ([1.0] * 12, [0.0] * 6 + [1.0] * 6):
        document = json.loads(path.read_text())
        document["per_query"]["recall@1"] = hits
        texts.append(json.dumps(document))
    return texts[0], texts[1]


@pytest.fixture
def two_runs(two_documents: tuple[str, str], tmp_path: Path) -> tuple[Path, Path]:
    """They as files of two runs."""
    paths = []
    for name, text in zip(("first", "second"), two_documents, strict=True):
        path = tmp_path / name / "results" / "metrics_epoch_00.json"
        path.parent.mkdir(parents=True)
        path.write_text(text)
        paths.append(path)
    return paths[0], paths[1]


def test_runs_are_tested_query_by_query(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    comparison = compare([tmp_path / "first", tmp_path / "second"])
    assert [one.name for one in comparison.results] == ["first/epoch_00", "second/epoch_00"]
    test = comparison.tests[0]["recall@1"]
    assert test.difference == -0.5
    assert test.low <= -0.5 <= test.high < 0
    assert test.p_value == pytest.approx(2 / 2**6, abs=0.01)  # six differences, all of one sign
    assert set(comparison.tests[0]) == set(headline())
    assert comparison.tests[0]["mAP"].p_value == 1  # the same embeddings both times
    # One and a half of three classes: by class the same difference is no surprise.
    by_class = compare(list(two_runs), by_class=True).tests[0]["recall@1"]
    assert by_class.p_value > 0.4


def test_a_folder_alone_compares_its_epochs(settings: Settings, photos: Path) -> None:
    options = config_from(lookalike.TrainConfig, settings(num_epochs=2))
    lookalike.train(options, progress=SilentProgress())
    comparison = compare([photos / "out"])
    assert [one.name for one in comparison.results] == ["epoch_00", "epoch_01", "epoch_02"]
    assert len(comparison.tests) == 2


def test_different_protocols_are_refused_unless_told(
    settings: Settings, photos: Path, tmp_path: Path
) -> None:
    one = evaluate(settings(out=str(tmp_path / "one")))
    other = evaluate(settings(test=str(photos / "train"), out=str(tmp_path / "other")))
    with pytest.raises(ConfigError, match=r"num_gallery: 18 and 30.*--different-protocols"):
        compare([one, other])
    comparison = compare([one, other], different_protocols=True)
    assert comparison.tests == []
    assert comparison.why_untested


def test_the_same_images_in_other_groups_are_another_protocol(
    settings: Settings, tmp_path: Path
) -> None:
    one = evaluate(settings(out=str(tmp_path / "one")))
    other = evaluate(settings(out=str(tmp_path / "other"), group_pattern=r"_(\d+)"))
    with pytest.raises(ConfigError, match="different protocols"):
        compare([one, other])


def test_folds_of_one_holdout_are_averaged(settings: Settings, tmp_path: Path) -> None:
    paths = [
        evaluate(settings(out=str(tmp_path / f"fold{fold}"), holdout_classes=f"{fold}/3"))
        for fold in (1, 2, 3)
    ]
    comparison = compare(paths)
    assert comparison.folds is not None
    values = [one.document["metrics"]["mAP"] for one in comparison.results]
    mean = sum(values) / 3
    deviation = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    assert comparison.folds["mAP"] == pytest.approx((mean, deviation))
    with pytest.raises(ConfigError, match="different protocols"):
        compare(paths[:2])  # a fold is missing
    document = json.loads(paths[0].read_text())
    document["protocol"]["holdout"]["rule"] = "2/3"  # one fold under two names
    (tmp_path / "copy.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="different protocols"):
        compare([paths[0], tmp_path / "copy.json", paths[1]])


def test_folds_of_two_data_sets_are_no_folds(settings: Settings, tmp_path: Path) -> None:
    other = write_tree(tmp_path / "more", dict.fromkeys("uvwxyz", 3))
    one = evaluate(settings(out=str(tmp_path / "a"), holdout_classes="1/2"))
    two = evaluate(settings(out=str(tmp_path / "b"), holdout_classes="2/2", test=str(other)))
    with pytest.raises(ConfigError, match="different protocols"):
        compare([one, two])


def test_one_and_the_same_protocol_compares_however_it_was_asked_for(
    settings: Settings, tmp_path: Path
) -> None:
    one = evaluate(settings(out=str(tmp_path / "a"), holdout_classes="1/2"))
    two = evaluate(settings(out=str(tmp_path / "b"), holdout_classes="0.5"))
    assert compare([one, two]).tests


def test_a_gallery_of_which_less_could_be_read_is_not_tested_against(
    settings: Settings, photos: Path, tmp_path: Path
) -> None:
    options = {"test": None, "query": str(photos / "query"), "gallery": str(photos / "gallery")}
    distractors = write_tree(photos / "gallery" / "zdistract", {"z": 2})
    one = evaluate(settings(out=str(tmp_path / "a"), **options))
    image = next((distractors / "z").iterdir())
    image.write_bytes(image.read_bytes()[:-60])  # its header is whole
    two = evaluate(settings(out=str(tmp_path / "b"), **options))
    comparison = compare([one, two])
    assert comparison.tests == []
    assert "read the same images" in (comparison.why_untested or "")


def test_a_file_that_is_its_own_answer_in_one_of_two_makes_two_protocols(
    settings: Settings, photos: Path, tmp_path: Path
) -> None:
    options = {"test": None, "query": str(photos / "query"), "gallery": str(photos / "gallery")}
    image = next((photos / "query" / "classa").iterdir())
    copy = photos / "gallery" / "classa" / "also.png"
    copy.write_bytes(image.read_bytes())
    one = evaluate(settings(out=str(tmp_path / "a"), **options))
    copy.unlink()
    copy.symlink_to(image)
    two = evaluate(settings(out=str(tmp_path / "b"), **options))
    with pytest.raises(ConfigError, match="num_pairs_of_one_file: 0 and 1"):
        compare([one, two])


def test_epochs_come_in_the_order_of_their_numbers(
    two_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    results = tmp_path / "long" / "results"
    results.mkdir(parents=True)
    for epoch in (9, 10, 99, 100, 101):
        (results / f"metrics_epoch_{epoch:02}.json").write_text(two_runs[0].read_text())
    assert [one.name for one in compare([tmp_path / "long"]).results] == [
        f"epoch_{epoch:02}" for epoch in (9, 10, 99, 100, 101)
    ]
    last = compare([two_runs[1], tmp_path / "long"]).results[1]
    assert last.path.name == "metrics_epoch_101.json"


def test_names_keep_the_folders_that_tell_results_apart(
    two_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    for folder in ("my_results/a", "my_results/b"):
        (tmp_path / folder / "results").mkdir(parents=True)
        target = tmp_path / folder / "results" / "metrics_other.json"
        target.write_text(two_runs[0].read_text())
    found = compare([tmp_path / "my_results" / "a", tmp_path / "my_results" / "b", two_runs[0]])
    assert [one.name for one in found.results] == [
        "my_results/a/other", "my_results/b/other", "first/epoch_00"
    ]  # fmt: skip


def test_what_is_no_metrics_file_says_so(tmp_path: Path, two_runs: tuple[Path, Path]) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text('{"a": 1}')
    for name, words in (
        ("broken.json", "not JSON"), ("other.json", "not a metrics file"),
        ("none.json", "does not exist"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=words):
            compare([two_runs[0], tmp_path / name])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no metrics files"):
        compare([two_runs[0], tmp_path / "empty"])
    with pytest.raises(ConfigError, match="two or more"):
        compare([two_runs[0]])
    with pytest.raises(ConfigError, match="given twice"):
        compare([two_runs[0], two_runs[0].parent / "." / two_runs[0].name])


@pytest.mark.parametrize(
    "damage",
    [
        {"protocol": []},
        {"protocol": {}},
        {"metrics": None},
        {"metrics": {"mAP@7": 1}},
        {"metrics": []},
        {"per_query": None},
        {"per_query": {}},
        {"per_query": {"name": []}},
    ],
)
def test_a_metrics_file_that_is_not_whole_is_named(
    damage: dict[str, Any], two_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    document = json.loads(two_runs[0].read_text()) | damage
    (tmp_path / "broken.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"broken\.json"):
        compare([two_runs[0], tmp_path / "broken.json"])


def changed(path: Path, *keys: str, to: Any) -> Path:
    """A copy of a metrics file in which one thing is another."""
    document = json.loads(path.read_text())
    at = document
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = to
    copy = path.with_name("changed.json")
    copy.write_text(json.dumps(document))
    return copy


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("metrics", "mAP"), "x"),
        (("metrics", "mAP"), True),
        (("metrics", "mAP"), float("nan")),
        (("metrics", "mAP"), 10**400),
        (("per_query", "mAP"), ["x"] * 12),
        (("per_query", "mAP"), [None] * 12),
        (("per_query", "mAP"), [[1.0]] * 12),
        (("per_query", "mAP"), {"0": 1.0}),
        (("per_query", "mAP"), [1.0] * 11),
        (("per_query", "label"), [1] * 12),
        (("per_query", "name"), None),
        (("per_query", "num_relevant"), [1.5] * 12),
        (("per_query", "num_relevant"), [-1] * 12),
        (("per_query", "num_relevant"), [2**64] * 12),
        (("intervals",), {"mAP": [1]}),
        (("protocol", "holdout"), "1/2"),
        (("protocol", "holdout"), {"rule": 3, "classes": [], "of_classes": ""}),
        (("protocol", "kind"), {"a": 1}),
        (("epoch",), "\x1b[31m1"),
    ],
)
def test_a_metrics_file_that_somebody_changed_is_named(
    keys: tuple[str, ...], value: Any, two_runs: tuple[Path, Path]
) -> None:
    with pytest.raises(DataError, match=r"changed\.json is damaged \(.*evaluate again"):
        compare([two_runs[0], changed(two_runs[1], *keys, to=value)])


def test_what_cannot_be_read_as_json_is_named(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    for content in (b"[" * 200_000, b"\xff\xfe{}", b'{"a": ' + b"9" * 5000 + b"}", b"\0", b"{}x"):
        broken.write_bytes(content)
        with pytest.raises(DataError, match=r"broken\.json is not JSON"):
            compare([two_runs[0], broken])
    for content in (b"[]", b"null", b'"\x1b[31m"', b"{}"):
        broken.write_bytes(content.replace(b"\x1b", b"\\u001b"))
        with pytest.raises(DataError, match=r"broken\.json is not a metrics file"):
            compare([two_runs[0], broken])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_not_waited_for(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match=r"pipe\.json is not a regular file"):
        compare([two_runs[0], tmp_path / "pipe.json"])


def test_names_and_facts_of_files_reach_no_terminal_raw(two_runs: tuple[Path, Path]) -> None:
    strange = changed(two_runs[1], "protocol", "\x1b]0;title\x07", to="\x9b31m" + "long" * 1000)
    document = json.loads(strange.read_text())
    document["protocol"]["fingerprint"] = "another"
    strange = strange.rename(strange.with_name("metrics_\x1b[31m.json"))
    strange.write_text(json.dumps(document))
    with pytest.raises(ConfigError) as refused:
        compare([two_runs[0], strange])
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 500


def test_a_difference_of_protocols_has_the_order_of_the_results(
    two_runs: tuple[Path, Path],
) -> None:
    other = changed(two_runs[1], "protocol", "fingerprint", to="another")
    other = changed(other, "protocol", "num_queries", to=80)
    with pytest.raises(ConfigError, match=r"^first/epoch_00 and .*num_queries: 12 and 80"):
        compare([two_runs[0], other])
    with pytest.raises(ConfigError, match=r"^.*changed and first/epoch_00 .*: 80 and 12"):
        compare([other, two_runs[0]])


def test_few_classes_are_tested_by_class_without_asking(two_runs: tuple[Path, Path]) -> None:
    plain, by_class = compare(two_runs), compare(two_runs, by_class=True)
    assert plain.tests_by_class == by_class.tests
    assert not by_class.tests_by_class
    told = command("compare", *two_runs)
    assert "by class, of which there are only 3:" in told.out
    found = json.loads(command("compare", *two_runs, "--json").out)
    assert found["tests_against_first_by_class"][0]["recall@1"]["p_value"] > 0.4


def test_each_query_of_a_class_of_its_own_is_tested_once(two_runs: tuple[Path, Path]) -> None:
    paths = [
        changed(path, "per_query", "label", to=[str(i) for i in range(12)]).rename(
            path.with_name("own.json")
        )
        for path in two_runs
    ]
    assert compare(paths).tests_by_class == []


def test_comparing_loads_no_more_than_it_needs(two_runs: tuple[Path, Path]) -> None:
    code = (
        "import sys; from lookalike.cli.main import main; main(sys.argv[1:]);"
        "print([m for m in ('torch', 'transformers', 'plotly', 'PIL') if m in sys.modules])"
    )
    words = [sys.executable, "-c", code, "compare", *map(str, two_runs)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
