"""What a work wrote into its folder and reads again: entries that are missing, or of another kind, are told."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import luthier as lt
from luthier.combining.reader import INDEX, Checkpoint
from luthier.comparing.measures import looks
from luthier.comparing.study import DataSet, Study
from luthier.comparing.until import looks_of
from luthier.core.files import located
from luthier.federating.folder import SPEC as FEDERATION
from luthier.federating.folder import same_base
from luthier.models import load
from luthier.training.beginning import begin
from luthier.training.best import FOLDER, STATE, Best
from luthier.training.folder import SPEC as RUN
from luthier.training.folder import read_run

STUDY = Study({"a": "m"}, {"x": DataSet(["a.jsonl"])}, until_told=0.1)


def best(folder: Path) -> None:
    run = SimpleNamespace(folder=folder, training=SimpleNamespace(best="loss", patience=None))
    Best(run, None, False).resumed(3)  # type: ignore[arg-type]


READERS = {
    "a run": (RUN, read_run),
    "a federation": (FEDERATION, lambda folder: same_base(folder, {"model": "m"})),
    "the looks at a study": (looks.FILE, looks.decided),
    "when a study is looked at": (looks.FILE, lambda folder: looks_of(STUDY, folder)),
    "the beginning of an edit": ("edit.json", lambda folder: begin(folder, "edit.json", {"edit": {"a": 1}}, "edit",
                                                                   False, ())),
    "the best evaluations": (f"checkpoints/{FOLDER}/{STATE}", best),
    "an index of weights": (INDEX, lambda folder: Checkpoint(folder, torch.device("cpu"))),
    "a model's index of weights": (INDEX, lambda folder: load(str(folder))),
}  # fmt: skip


AS_NEW = [("a federation", held) for held in ({}, {"metric": "loss", "values": 3}, {"weight_map": [1]})]
"""What says nothing of a base, as before there was one."""


@pytest.mark.parametrize("held", [{}, [], 3, "a", None, {"metric": "loss", "values": 3}, {"weight_map": [1]}], ids=repr)
@pytest.mark.parametrize("name", READERS)
def test_damage_is_told(name, held, tmp_path):
    file, read = READERS[name]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(json.dumps(held))
    (tmp_path / "config.json").write_text("{}")
    told = nullcontext() if (name, held) in AS_NEW else pytest.raises(lt.LuthierError)
    with told:
        read(tmp_path)


def test_a_text_that_is_no_name_of_a_file_lies_nowhere(tmp_path):
    assert located("a" * 300, tmp_path) == "a" * 300
