"""Uploading an export to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lookalike.errors import ConfigError, OutputError, first_line
from lookalike.files import shown

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def push(api: HfApi, name: str, folder: Path, *, private: bool, message: str) -> str:
    """Uploads a folder as one commit, to a new repository if there is none; returns its URL.

    A repository that is there keeps its visibility, and its files that are not in `folder`.

    Raises:
        OutputError: the hub refuses, or cannot be reached.
    """
    later = f"To upload what is exported: hf upload {name} {shown(folder)}"
    with _telling(f"cannot upload to {name}", later):
        url = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    return str(url)


def log_in(name: str) -> HfApi:
    """Asks the hub, before any work is done, whether we may write to a repository.

    Raises:
        ConfigError: there is no token, it may only read, or it is not the owner's.
        OutputError: the hub cannot be reached, or does not know the token.
    """
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if token is None:
        raise ConfigError(
            "--push-to-hub needs a token, and there is none: set HF_TOKEN, or log in once with "
            "`hf auth login`"
        )
    api = HfApi(token=token)
    with _telling("the hub refuses access", "Without --push-to-hub, export works offline"):
        who = api.whoami()
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ConfigError(
            f"the token of {who['name']} can only read; --push-to-hub needs one that can write"
        )
    owners = [who["name"], *(one["name"] for one in who.get("orgs", ()))]
    if name.partition("/")[0] not in owners:
        raise ConfigError(
            f"push_to_hub is {name}, but the token is that of {who['name']}, who can write to "
            f"repositories of {', '.join(owners)}; name one of theirs, or use another token"
        )
    return api


@contextmanager
def _telling(what: str, advice: str) -> Iterator[None]:
    """Turns whatever goes wrong between here and the hub into one line."""
    try:
        yield
    # The hub's client tells of networks, proxies, certificates, quotas and its own checks by
    # exceptions of several libraries, which have changed from release to release.
    except Exception as error:
        raise OutputError(f"{what}: {first_line(error)}. {advice}") from error
