"""`luthier explain`: a method in words, and its exact number of parameters on a model."""

from __future__ import annotations

import json

import pytest

from luthier.cli.describe import EDIT_KINDS, KINDS, locate, settings_of, type_words
from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import EDIT_KINDS as FORM_EDIT_KINDS

LLAMA2 = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
LLAMA3 = {
    **LLAMA2,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
QV, QKVUD = "q_proj, v_proj", "q_proj, k_proj, v_proj, up_proj, down_proj"


@pytest.fixture
def config(tmp_path):
    def write(values: dict):
        file = tmp_path / "config.json"
        file.write_text(json.dumps(values), encoding="utf-8")
        return file

    return write


@pytest.mark.parametrize(
    "values, where, expected",
    [(LLAMA2, QV, 1_048_576), (LLAMA2, QKVUD, 3_506_176), (LLAMA3, QV, 1_048_576), (LLAMA3, QKVUD, 3_932_160)],
    ids=["llama2-qv", "llama2-qkvud", "llama3-qv", "llama3-qkvud"],
)
def test_counts_of_the_paper(call, config, values, where, expected):
    words = ["explain", "wegeft", "--rank", 64, "--share", "type", "--where", where, "--json"]
    found = json.loads(call(*words, "--model", config(values)).out)
    assert found["count"]["trainable"] == expected


def test_count_as_a_table(call, config):
    done = call("explain", "wegeft", "--rank", 64, "--share", "type", "--where", QV, "--model", config(LLAMA2).parent)
    assert "1,048,576 trainable parameters at 64 sites: 0.0156% of 6,738,415,616" in done.out


@pytest.mark.parametrize("name", names("forms"))
def test_every_form_is_explained(call, name):
    cls = find("forms", name)
    done = call("explain", name)
    assert done.code == 0
    for text in (cls.equation(), cls.paper, cls.where, EDIT_KINDS[cls.edit_kind], *cls.settings()):
        assert text.replace("_", "-") in done.out.replace("_", "-")


@pytest.mark.parametrize("name", names("forms"))
def test_every_setting_has_a_docstring(name):
    assert all(each.doc for each in settings_of(find("forms", name)))


def test_words_for_every_face_and_kind():
    from typing import get_args

    from luthier.core.contracts.site import Kind

    assert set(EDIT_KINDS) == set(FORM_EDIT_KINDS) and set(KINDS) == set(get_args(Kind))


def test_settings_change_what_is_explained(call):
    found = json.loads(call("explain", "lora", "--rank", 3, "--share", "none", "--json").out)
    values = {each["name"]: each["value"] for each in found["settings"]}
    assert values["rank"] == 3 and values["share"] is None


def test_objectives_are_explained_but_have_no_count(call, config):
    assert "cross-entropy" in call("explain", "sft").out.lower()
    done = call("explain", "sft", "--model", config(LLAMA2))
    assert done.code == 2 and "not a form" in done.err


def test_near_names(call):
    done = call("explain", "wgeft")
    assert done.code == 2 and "did you mean 'wegeft'" in done.err
    done = call("explain", "wegeft", "--rnk", 4)
    assert done.code == 2 and "--rank" in done.err


def test_a_word_on_another_axis_is_found():
    assert [axis for axis, _ in locate("SFT")] == ["objectives"]


def test_types_in_words():
    assert type_words(str | None) == "str or none"
    assert type_words(find("forms", "lora").settings()["scaling"][0]) == "lora or rslora"
