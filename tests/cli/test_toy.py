"""The meta-law: a form dropped into a folder is seen by every command, without an edit anywhere."""

from __future__ import annotations

import json
import os

import pytest

from support import fresh

EQUATION, PAPER = "y' = (1 + s g) ⊙ y", "nobody 2031, arXiv 3101.00001"
TOY = '''
"""Toy: a form of one file."""

from __future__ import annotations

from dataclasses import dataclass

from torch import ones

from luthier.core.contracts.form import Form


@dataclass(frozen=True)
class Toy(Form):
    """y' = (1 + s g) ⊙ y

    g [d_out] starts at 0: a no-op.
    """

    paper = "nobody 2031, arXiv 3101.00001"
    where = "o_proj"

    size: float = 2.0
    """The scale s."""

    def init(self, site, stats):
        return {"g": 0 * ones(site.d_out)}

    def post(self, p, x, y):
        return y * (1 + self.size * p["g"])
'''

SIGNS = '''
"""Signs: an update of one file."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.contracts.update import Update


@dataclass(frozen=True)
class Signs(Update):
    """g' = height · sign(g)"""

    paper = "nobody 2031, arXiv 3101.00002"

    height: float = 1.0
    """The size of every entry."""

    def update(self, grads, state, place):
        return {key: self.height * grad.sign() for key, grad in grads.items()}
'''


@pytest.fixture
def toys(tmp_path):
    (tmp_path / "toys" / "updates").mkdir(parents=True)
    (tmp_path / "toys" / "updates" / "signs.py").write_text(SIGNS, encoding="utf-8")
    (tmp_path / "toys" / "forms").mkdir(parents=True)
    (tmp_path / "toys" / "forms" / "toy.py").write_text(TOY, encoding="utf-8")
    return {"LUTHIER_PATH": str(tmp_path / "toys")}


def test_a_toy_form_is_seen_everywhere(session, toys, llama, rows, tmp_path):
    run, merged = tmp_path / "run", tmp_path / "merged"
    answer = ["say one", "--max-new-tokens", 4, "--json"]
    done = session(
        ["list", "forms", "--json"],
        ["explain", "toy", "--size", 3, "--model", llama, "--json"],
        ["train", "--method", "toy", "--help"],
        ["train", llama, rows, "--method", "toy", "--size", 4, "--lr", 0.1, "--steps", 3, "--out", run],
        ["show", run],
        ["merge", llama, run, merged],
        ["generate", llama, "--adapter", run, *answer],
        ["generate", merged, *answer],
        **toys,
    )
    assert [each.code for each in done] == [0] * len(done), done
    listed, explained, helped, _, shown, _, adapted, folded = (each.out for each in done)
    assert {"name": "toy", "equation": EQUATION, "paper": PAPER} in json.loads(listed)["forms"]
    explained = json.loads(explained)
    assert explained["count"]["trainable"] == 3 * 32 and explained["default where"] == "o_proj"
    assert {"name": "size", "doc": "The scale s.", "value": 3.0}.items() <= explained["settings"][0].items()
    assert "--size" in helped and "The scale s." in helped
    spec = json.loads((run / "adapter" / "adapter.json").read_text())
    assert spec["parts"][0]["form"] == "toy" and spec["parts"][0]["settings"]["size"] == 4.0
    assert "toy(" in shown
    assert json.loads(adapted) == json.loads(folded)


def test_a_toy_update_is_seen_and_used(session, toys, llama, rows, tmp_path):
    run = tmp_path / "run"
    settings = ["--method", "lora", "--update", "signs"]
    done = session(
        ["list", "updates", "--json"],
        ["train", *settings, "--help"],
        ["train", llama, rows, *settings, "--height", 0.5, "--steps", 2, "--out", run],
        **toys,
    )
    assert [each.code for each in done] == [0] * len(done), done
    assert "signs" in {each["name"] for each in json.loads(done[0].out)["updates"]} and "--height" in done[1].out
    record = json.loads((run / "run.json").read_text())
    assert record["run"]["update"] == {"name": "signs", "settings": {"height": 0.5}}


def test_a_toy_form_is_on_the_page(toys, tmp_path):
    done = fresh.run("-m", "luthier.cli.docs", tmp_path, env={**os.environ, **toys})
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "methods.md").read_text(encoding="utf-8")
    assert "### toy" in page and "The scale s." in page


def test_without_the_folder_it_is_gone(shell):
    done = shell("explain", "toy")
    assert done.code == 2 and "nothing is named 'toy'" in done.err


def test_a_file_without_its_class_is_told(shell, toys, tmp_path):
    (tmp_path / "toys" / "forms" / "odd.py").write_text("x = 1\n", encoding="utf-8")
    done = shell("list", "forms", **toys)
    assert done.code == 2 and "odd.py" in done.err and "lower-cased name" in done.err
