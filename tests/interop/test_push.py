"""Pushing, with a hub that only remembers what it was sent."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

import luthier as lt
from luthier.cli import main
from luthier.core.errors import LuthierError
from luthier.interop.push import parcel, push
from support.architectures import ARCHITECTURES


class Hub:
    """As much of HfApi as pushing uses."""

    def __init__(self, public: bool = False, fails: Exception | None = None) -> None:
        self.public, self.fails, self.sent, self.made = public, fails, {}, []

    def create_repo(self, repo, *, private, exist_ok, repo_type):
        if self.fails is not None:
            raise self.fails
        self.made.append((repo, private))

    def repo_info(self, repo, *, repo_type):
        return SimpleNamespace(private=not self.public)

    def create_commit(self, repo, operations, *, commit_message, repo_type):
        self.sent |= {each.path_in_repo: each.path_or_fileobj for each in operations}
        return SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1")


class Refused(HfHubHTTPError):
    """As the hub answers to a token that may not write."""

    def __init__(self) -> None:
        Exception.__init__(self, "403 Forbidden")


@pytest.fixture
def run(tmp_path):
    model = lt.attach(ARCHITECTURES["llama"].build(), lt.LoRA(rank=2), where="q_proj")
    lt.save(model, tmp_path / "run" / "adapter", base="org/tiny", measured={"task": "causal-lm"})
    (tmp_path / "run" / "adapter" / "token.txt").write_text("secret")
    return tmp_path / "run"


def test_exactly_the_three_files_go_up_and_what_comes_back_loads(run, tmp_path):
    hub = Hub()
    assert push(run, "user/name", private=True, api=hub) == "https://hub/user/name/commit/1"
    assert sorted(hub.sent) == ["README.md", "adapter.json", "adapter.safetensors"]
    assert hub.made == [("user/name", True)]
    assert b'snapshot_download("user/name")' in hub.sent["README.md"]
    assert b"base_model: org/tiny" in hub.sent["README.md"]
    (tmp_path / "down").mkdir()
    for name, data in hub.sent.items():
        (tmp_path / "down" / name).write_bytes(data)
    held = [lt.trainable(lt.load(ARCHITECTURES["llama"].build(), f)) for f in (tmp_path / "down", run / "adapter")]
    assert all(torch.equal(held[0][key], held[1][key]) for key in held[1])


def test_what_is_no_whole_adapter_stays_here(run, tmp_path):
    hub = Hub()
    with pytest.raises(LuthierError, match="no adapter"):
        push(tmp_path, "user/name", api=hub)
    for repo in ("name", "a/b/c", "../x", "user/", "user/../x", "-a/b", "user/na me"):
        with pytest.raises(LuthierError, match="user/name"):
            push(run, repo, api=hub)
    card = run / "adapter" / "README.md"
    (tmp_path / "secret").write_text("secret")
    card.unlink()
    card.symlink_to(tmp_path / "secret")
    with pytest.raises(LuthierError, match="leads out"):
        push(run, "user/name", api=hub)
    card.unlink()
    weights = run / "adapter" / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(LuthierError, match="damaged"):
        push(run, "user/name", api=hub)
    assert not hub.sent and not hub.made


def test_a_public_repository_is_no_private_one(run):
    hub = Hub(public=True)
    with pytest.raises(LuthierError, match="public"):
        push(run, "user/name", private=True, api=hub)
    assert not hub.sent
    push(run, "user/name", api=hub)
    assert hub.sent


def test_what_the_hub_says_is_told(run):
    for fails, told in ((LocalTokenNotFoundError(), "log in"), (Refused(), "403"), (OSError("no route"), "no route")):
        with pytest.raises(LuthierError, match=told):
            push(run, "user/name", api=Hub(fails=fails))


def test_a_dry_run_shows_the_files_and_sends_nothing(run, capsys):
    assert main(["push", str(run), "user/name", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "adapter.safetensors" in out and "base_model: org/tiny" in out and "Nothing was sent" in out
    assert main(["push", str(run), "user/name"]) == 2  # the tests are offline
    assert "the hub did not take" in capsys.readouterr().err


def test_an_adapter_without_a_card_gets_one_and_local_paths_are_told(run, tmp_path):
    (run / "adapter" / "README.md").unlink()
    assert b"license" not in parcel(run, "user/name").files["README.md"]
    model = lt.load(ARCHITECTURES["llama"].build(), run / "adapter")
    lt.save(model, tmp_path / "local", base="/home/me/model")
    made = parcel(tmp_path / "local", "user/name")
    assert made.tells and b"base_model:" not in made.files["README.md"]
