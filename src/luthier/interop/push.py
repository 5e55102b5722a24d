"""Pushing an adapter to the model hub: its three files in one commit, and nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.files import own_file, steady
from luthier.core.records import read_text
from luthier.core.storage.card import REPOSITORY, card_of
from luthier.core.storage.folder import adapter_at
from luthier.core.storage.format import SPEC, read
from luthier.core.storage.weights import WEIGHTS, opened

CARD = "README.md"
NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?/[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?", re.ASCII)


@dataclass(frozen=True)
class Parcel:
    """The files that are pushed to the hub."""

    repo: str
    """The repository, as user/name."""
    files: Mapping[str, bytes]
    """Contents by the name in the repository."""
    spec: Mapping[str, Any]
    """Of the adapter."""

    @property
    def tells(self) -> list[str]:
        """What the files tell of this machine."""
        base = str(self.spec["base"]["name"])
        local = base.startswith(("/", "~", ".")) or os.path.isdir(os.path.expanduser(base))
        return [f"the base is named {base!r}, a path of this machine: others will not find it"] if local else []


def parcel(adapter: str | Path, repo: str) -> Parcel:
    """Returns the files of an adapter's folder (or of a run's), verified, with the repository named in the card.

    Raises `LuthierError` for a folder that is not an adapter, for damage, and for a name that is not user/name.
    """
    if not NAME.fullmatch(repo) or ".." in repo or "--" in repo:
        raise LuthierError(f"{repo!r} is not a repository; write user/name, of letters, digits, '-', '_' and '.'.")
    folder = adapter_at(adapter)
    if folder is None:
        raise LuthierError(f"{adapter} holds no adapter ({SPEC} is not there); only adapters are pushed.")
    with steady(folder):
        spec = read(folder)
        opened(folder, spec)  # its checksum and its header
        files = {name: own_file(folder, name).read_bytes() for name in (SPEC, WEIGHTS)}
        text = read_text(own_file(folder, CARD)) if (folder / CARD).exists() else card_of(spec)
    return Parcel(repo, {**files, CARD: text.replace(REPOSITORY, repo).encode()}, spec)


def push(adapter: str | Path, repo: str, *, private: bool = False, api: Any = None) -> str:
    """Puts an adapter into the repository user/name of the hub, made if it is new; returns the address of the commit.

    Exactly `adapter.json`, `adapter.safetensors` and the card go up, in one commit. `api` is a `huggingface_hub.HfApi`
    (by default one that uses the token of `hf auth login`).

    Raises `LuthierError` for what is not an adapter, where the hub cannot be reached or refuses, and where a private
    repository is asked for and a public one of that name is there.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    made = parcel(adapter, repo)
    api = HfApi() if api is None else api
    try:
        api.create_repo(repo, private=private, exist_ok=True, repo_type="model")
        if private and not api.repo_info(repo, repo_type="model").private:
            raise LuthierError(f"{repo} is there and public; make it private on the hub first, or name another one.")
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in made.files.items()]
        done = api.create_commit(repo, operations, commit_message="An adapter made with Luthier", repo_type="model")
    except LocalTokenNotFoundError:
        raise LuthierError("the hub does not know who you are; log in with `hf auth login` first.") from None
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise LuthierError(
            f"the hub did not take {repo} ({reason}); check the network, the name and the token."
        ) from error
    return str(done.commit_url)
