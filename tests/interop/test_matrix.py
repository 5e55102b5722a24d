"""The matrix of docs/interop.md says what was measured, of every recorded folder, and what is true now."""

from __future__ import annotations

import warnings

import pytest

from support import matrix

HELD = matrix.held()


def test_the_page_holds_what_was_measured():
    page = matrix.PAGE.read_text(encoding="utf-8")
    table = page.split(matrix.BEGIN)[1].split(matrix.END)[0].strip()
    assert table == matrix.table(), "write it anew: python -m support.matrix print, from tests/"


@pytest.mark.parametrize("form", matrix.FROM)
def test_every_recorded_folder_was_measured_in_every_column(form):
    for source in matrix.sources(form):
        assert set(HELD[form][source.name]) == set(matrix.TO), source.name


def kind(cell: dict) -> str:
    return "refused" if "refused" in cell else "truncated" if cell.get("lost", 0) >= matrix.ROUNDED else "exact"


@pytest.mark.parametrize("place, form", enumerate(matrix.FROM))
def test_what_was_measured_is_so_now(place, form, tmp_path):
    """One folder of each format, in one column."""
    source, to = next(matrix.sources(form), None), matrix.TO[place % len(matrix.TO)]
    if source is None:
        pytest.skip("nothing of this format was recorded")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = matrix.measured(source, tmp_path, (to,))[to]
    assert kind(found) == kind(HELD[form][source.name][to])
    assert matrix.reason(found.get("refused", "")) == matrix.reason(HELD[form][source.name][to].get("refused", ""))


def test_reasons_name_no_layer_and_lose_no_word():
    texts = [
        "ia3 acts on a parameter of model.layers.1.mlp.up_proj, and the format has no place for that; export it.",
        "lora at model.layers.0.self_attn.q_proj is not a constant. Choose another.",
        "dora at model.layers.0.self_attn.q_proj is not a constant. Choose another.",
        "peft's prefixes: this base (GPT2LMHeadModel) has no positions of one kind (default, yarn), and more.",
        "prefixes of a BertForSequenceClassification have no place. Run it as it is.",
        "model.wte is not a linear layer of its own to llama.cpp; export a whole GGUF.",
    ]
    assert matrix.reasons(texts) == [
        "lora, dora at a layer is not a constant (2)",
        "ia3 acts on a parameter of a layer, and the format has no place for that (1)",
        "the base has no positions of one kind (default, yarn), and more (1)",
        "prefixes of a base have no place (1)",
        "a layer is not a linear layer of its own to llama.cpp (1)",
    ]
