"""Folders that pyreft itself wrote come in through the command line."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from support.pyreft_recorded import CASES, FOLDER, IDS, base


@pytest.fixture
def folder(tmp_path):
    """A recorded base with a tokenizer of its 32 tokens, as a folder."""

    def save(name: str):
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        words = {f"w{number}": number for number in range(32)}
        made = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="w2", pad_token="w1"
        )
        made.save_pretrained(tmp_path / "base")
        base(name).save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return save


@pytest.mark.parametrize(
    "name", ["loreft-apart", "noreft-bias", "consreft", "lobireft", "direft-head", "nodireft", "glue"]
)
def test_each_class_gives_pyrefts_outputs(name, call, folder, tmp_path):
    case = CASES[name]
    words = ["--task", "classification", "--labels", "no,yes"] if case.model == "roberta" else []
    words += ["--model", folder(case.model), "--positions", case.positions]
    done = call("import", FOLDER / name, tmp_path / "ours", *words)
    assert done.code == 0, done.err
    wanted = load_file(FOLDER / "logits.safetensors")[name]
    with torch.no_grad():
        logits = lt.load(base(case.model), tmp_path / "ours")(input_ids=IDS).logits
    assert (logits - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


def test_the_adapter_is_refused_on_another_base(call, folder, tmp_path):
    words = ["--model", folder("roberta"), "--positions", "f2+l3", "--task", "classification", "--labels", "no,yes"]
    done = call("import", FOLDER / "direft-head", tmp_path / "ours", *words)
    assert done.code == 2 and "lm_head.weight, which is not a parameter of this Roberta" in done.err
