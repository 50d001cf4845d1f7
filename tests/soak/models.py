"""Faults of models, checkpoints and runs."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import torch

from soak.ground import (
    NEWEST,
    TERMINAL,
    Command,
    embed,
    evaluate,
    export,
    fault,
    of_checkpoint,
    resume,
    train,
)
from soak.spoil import deep, empty, remove, spoil, truncate


@fault
def a_model_file_is_damaged(folder: Path, draw: Random) -> Command:
    file = draw.choice(sorted(path for path in (folder / "clip").iterdir() if path.is_file()))
    draw.choice([spoil, truncate, empty, remove, deep])(file, draw)
    return draw.choice([evaluate(), train(), embed(), export("clip")])


@fault
def a_model_setting_is_another(folder: Path, draw: Random) -> Command:
    file = draw.choice([folder / "clip/config.json", folder / "clip/preprocessor_config.json"])
    document = json.loads(file.read_text())
    part: dict[str, Any] = document
    if isinstance(part.get("vision_config"), dict) and draw.random() < 0.7:
        part = part["vision_config"]
    part[draw.choice(sorted(part))] = draw.choice(
        [None, -1, 0, 10**12, "x", [], {}, 1.5, True, [[1]], TERMINAL, 64]
    )
    file.write_text(json.dumps(document))
    return draw.choice([evaluate(), train(), embed(), export("clip")])


@fault
def a_model_is_of_another_tool(folder: Path, draw: Random) -> Command:
    clip = folder / "clip"
    kind = draw.choice(["open_clip", "pickle", "adapter", "code"])
    if kind == "open_clip":
        (clip / "config.json").rename(clip / "open_clip_config.json")
    elif kind == "pickle":
        (clip / "model.safetensors").unlink()
        (clip / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.")
    elif kind == "adapter":
        (clip / "config.json").unlink()
        (clip / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    else:
        document = json.loads((clip / "config.json").read_text())
        document |= {"auto_map": {"AutoModel": "m.M", "AutoConfig": "m.C"}, "model_type": "mine"}
        (clip / "config.json").write_text(json.dumps(document))
        (clip / "m.py").write_text("open('pwned', 'w')\n")
    command = draw.choice([evaluate(), train(), embed(), export("clip")])
    command.stdin = b"y\n" * 20
    return command


@fault
def a_checkpoint_is_damaged(folder: Path, draw: Random) -> Command:
    draw.choice([spoil, truncate, empty])(folder / NEWEST, draw)
    return of_checkpoint(draw)


@fault
def a_checkpoint_entry_is_another(folder: Path, draw: Random) -> Command:
    content = torch.load(folder / NEWEST, weights_only=True)
    key = draw.choice(sorted(content))
    place, name = content, key
    if isinstance(content[key], dict) and content[key] and draw.random() < 0.6:
        place, name = content[key], draw.choice(sorted(content[key], key=str))
    value: Any = draw.choice(
        [
            None,
            -1,
            10**30,
            "x" * 10,
            [],
            {},
            float("nan"),
            torch.zeros(3),
            TERMINAL,
            "../../pwned",
            {"../pwned": "x"},
            [[[]]],
        ]
    )
    if draw.random() < 0.2:
        del place[name]
    else:
        place[name] = value
    torch.save(content, folder / NEWEST)
    return of_checkpoint(draw)


@fault
def another_file_of_a_run_is_damaged(folder: Path, draw: Random) -> Command:
    files = sorted(path for path in (folder / "run/results").iterdir() if path.is_file())
    draw.choice([spoil, truncate, empty, deep])(draw.choice(files), draw)
    return draw.choice([resume(), Command(["compare", "run"]), export(NEWEST)])


@fault
def a_run_is_resumed_into_another(folder: Path, draw: Random) -> Command:
    assert draw
    return Command(
        ["train", "--resume", NEWEST, "--out", "run2", "--num-epochs", "3"], before="cp -r run run2"
    )
