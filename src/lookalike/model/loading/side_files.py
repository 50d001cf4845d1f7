"""The small files of a model: its configuration, its processor's, and its tokenizer."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lookalike.errors import ModelError, OutputError, first_line
from lookalike.files import shown
from lookalike.model.loading.archive import no_content
from lookalike.model.loading.transformers import quiet_transformers

# With them a checkpoint is whole: it can be exported, and its text tower used, where the model it
# came from is out of reach. No other names are written, whoever asks for it.
SIDE_FILES = (
    "config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "spiece.model",
)  # fmt: skip
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def read_side_files(folder: Path) -> dict[str, str | bytes]:
    """Returns a model's small files by name; bytes of what is no text.

    Raises:
        ModelError: one of them cannot be read.
    """
    found: dict[str, str | bytes] = {}
    for file in (folder / name for name in SIDE_FILES):
        if not file.is_file():
            continue
        try:
            content = file.read_bytes()
            found[file.name] = content if file.suffix == ".model" else content.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"cannot read {shown(file)}: {first_line(error)}") from error
    return found


def has_tokenizer(side_files: Mapping[str, str | bytes]) -> bool:
    """Returns True if a model's small text files hold a whole tokenizer."""
    return "tokenizer.json" in side_files or {"vocab.json", "merges.txt"} <= set(side_files)


def write_side_files(side_files: Mapping[str, str | bytes], folder: Path) -> None:
    """Puts a model's small files into a folder, such as one to load its tokenizer from.

    Raises:
        ModelError: one of them has a name that is none of theirs.
        OSError: they cannot be written.
    """
    for name, content in side_files.items():
        if name not in SIDE_FILES:  # it may come from a file that anybody made
            raise ModelError(f"a model has no file {shown(name)!r}, so it was not written")
        data = content.encode("utf-8") if isinstance(content, str) else content
        (folder / name).write_bytes(data)


def load_tokenizer(
    side_files: Mapping[str, str | bytes], model_name: str, folder: Path | None = None
) -> Any:
    """Loads a model's tokenizer: from the `folder` that it lies in, or else, by way of a temporary
    one, from its small files, which a checkpoint has as well.

    Raises:
        ModelError: it cannot be built.
        OutputError: there is no room for the temporary folder.
    """
    here = {file.name: "" for file in folder.glob("*")} if folder is not None else {}
    # With tokens in a file that a checkpoint does not have, the two would not be the same.
    if folder is not None and has_tokenizer(here) and "added_tokens.json" not in here:
        return _load_from(folder, side_files, model_name)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            write_side_files(side_files, Path(temporary))
            return _load_from(Path(temporary), side_files, model_name)
    except OSError as error:
        raise OutputError(
            f"the tokenizer of {shown(model_name)} goes through a temporary folder, and nothing "
            f"can be written in {shown(_temporary_folder())} "
            f"({error.strerror or first_line(error)}); free some room there, or set TMPDIR to "
            "another folder"
        ) from error


def _temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:  # none of the usual ones can be written
        return os.environ.get("TMPDIR", "/tmp")  # noqa: S108 - only named


def _load_from(folder: Path, side_files: Mapping[str, str | bytes], model_name: str) -> Any:
    # Whatever a tokenizer's files hold, what fails in them is a matter of these files: the
    # library in Rust and a dozen classes of Transformers raise nearly everything.
    with quiet_transformers():
        try:
            return AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:
            # Its own class may ask for a package (sentencepiece) that tokenizer.json does without.
            first, can_do_without = error, "tokenizer.json" in side_files
        try:
            if can_do_without:
                return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            first = error
        files = (folder / name for name in sorted(side_files))
        missing = next((f"{one.name}: {why}" for one in files if (why := no_content(one))), None)
        raise ModelError(
            f"the tokenizer of {shown(model_name)} cannot be built: "
            f"{missing or shown(first_line(first))}; "
            "copy its files from the model it was made from"
        ) from first
