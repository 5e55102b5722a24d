"""The laws of packed batches: whatever is fitted, in whatever model, losses and gradients are those of padded ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

import luthier as lt
from luthier import data, models
from luthier.core.contracts.component import find, names
from luthier.core.contracts.objective import At, Objective
from luthier.core.contracts.router import Routed
from luthier.core.sites.packable import why_not_packed
from luthier.core.sites.packing import PACKED, packed, packing_now, packing_of
from luthier.training.context import recompute
from luthier.training.pack import shares
from luthier.training.prepare import prepare
from support.architectures import ARCHITECTURES, base_of
from support.objective_runs import run_of
from support.padded import ALIKE, LENGTHS, TEXT, answers_to_one_prompt, batch, gradients, perturb, same, without_dropout

FORMS = names("forms")
OBJECTIVES = [name for name in names("objectives") if not find("objectives", name)().samples]
"""Those that sample answers pad their batches."""
INVOKED = 42
"""A token that stands in some rows of `batch`."""


def blocks_packed(model: nn.Module, run: Callable[[], Any], shared: bool = False) -> tuple[Any, int]:
    """What `run()` gives within packed batches, and how many blocks had packed tokens in its last pass; with `shared`,
    how many blocks computed a prompt once."""
    seen = []
    hook = model.register_forward_hook(lambda *_: seen.append(packing_now()), prepend=True)
    try:
        with packed(model, shared):
            found = run()
        last = seen[-1]
        return found, 0 if last is None or (shared and last.shared is None) else last.blocks
    finally:
        hook.remove()


@pytest.mark.parametrize("name", FORMS)
def test_of_every_form(name):
    """And of rows that share a prompt, but for forms that see what is behind it. (There, the gradients of rows are
    added before norms round them to float32.)"""
    chosen = find("forms", name)
    fields = chosen.__dataclass_fields__
    names_ = {f: ("a", "b") for f in ("tasks", "experts") if f in fields and isinstance(fields[f].default, tuple)}
    form = chosen(**names_ if issubclass(chosen, Routed) else {})
    assert isinstance(form, lt.Form)
    model = without_dropout(lt.attach(base_of(name).build(dtype=torch.float64), form))
    perturb(model)
    model.train()
    rows = batch() | ({"tasks": torch.tensor([0, 1, 1, 0, 1])} if issubclass(chosen, Routed) and chosen.by_task else {})

    def loss() -> torch.Tensor:
        torch.manual_seed(0)  # some forms draw an expert in each pass
        return model(**rows).loss

    expected = loss()
    own, count = blocks_packed(model, loss)
    assert count == 3 and torch.allclose(own, expected, rtol=1e-12)
    same(gradients(model, own), gradients(model, expected), 1e-11)
    rows |= answers_to_one_prompt()
    if shares(model) and "tasks" not in rows:
        expected, (own, count) = loss(), blocks_packed(model, loss, shared=True)
        assert count == 3 and torch.allclose(own, expected, rtol=1e-12)
        same(gradients(model, own), gradients(model, expected), 3e-7)
    else:
        assert chosen.sees or "tasks" in rows


@pytest.mark.parametrize("name", TEXT)
def test_in_every_architecture(name):
    """Those that pack give the same loss and gradients; those that cannot say why, and are left as they are."""
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    reason = why_not_packed(model)
    assert (reason is None) == (name not in {"bloom", "falcon", "deberta_v2"}), reason
    lt.attach(model, lt.LoRA(rank=4))
    perturb(model)
    model.train()
    without_dropout(model)
    rows = batch()
    if architecture.kind == "encoder":
        rows["labels"] = torch.tensor([0, 1, 1, 0, 1])
    expected = model(**rows).loss
    if reason is not None:
        return
    own, count = blocks_packed(model, lambda: model(**rows).loss)
    assert count >= 3
    assert torch.allclose(own, expected, rtol=ALIKE)
    same(gradients(model, own), gradients(model, expected), 2e-6)
    assert shares(model) == (architecture.kind == "decoder")
    if architecture.kind == "decoder":
        rows = answers_to_one_prompt()
        expected, (own, count) = model(**rows).loss, blocks_packed(model, lambda: model(**rows).loss, shared=True)
        assert count >= 3 and torch.allclose(own, expected, rtol=ALIKE)
        same(gradients(model, own), gradients(model, expected), 2e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_of_every_objective(name, tmp_path):
    """Loss, figures and gradients of a batch, with random draws in the batch and on embeddings."""
    chosen = find("objectives", name)()
    assert isinstance(chosen, Objective)
    run, form = run_of(tmp_path, chosen, name)
    prepared = prepare(run)
    loaded = models.load(run.model, task=prepared.task, labels=prepared.examples.labels)
    model = lt.attach(loaded.model, form)
    perturb(model)
    without_dropout(model.train())
    rows = data.collator_for(prepared.task, prepared.processor)(list(prepared.train[:6]))
    rows.pop("rows")
    at = At(5, 10, True, lambda given: model(**given).logits.detach())

    def told():
        torch.manual_seed(0)
        inputs = chosen.inputs(rows, at)
        return chosen.loss_and_figures(model, inputs)

    shared = prepared.task == "causal-lm" and chosen.reads == ("pairs",)
    (means, figures), ((own, here), count) = told(), blocks_packed(model, told, shared)
    assert count == 3 and torch.allclose(own, means, rtol=5e-6, atol=1e-7)
    assert all(torch.allclose(here[key].double(), figures[key].double(), rtol=1e-4, atol=1e-5) for key in figures)
    same(gradients(model, own.sum()), gradients(model, means.sum()), 5e-6)


def fine_tuned(name: str = "llama", form: lt.Form | None = None, **settings) -> Any:
    changed = replace(ARCHITECTURES[name], settings=ARCHITECTURES[name].settings | settings)
    model = lt.attach(changed.build(), form or lt.LoRA(rank=4))
    perturb(model)
    return model.train()


@pytest.mark.parametrize("name", ["llama", "gpt2"])  # which hand the mask on by name, and by place
@pytest.mark.parametrize(
    "form", [lt.LoRA(rank=4), lt.LoReFT(rank=2, positions="f2+l2"), lt.LoRA(rank=2, positions=f"from:{INVOKED}")]
)
def test_with_a_vocabulary_that_is_gone_through_in_chunks_and_recomputed_blocks(name, form):
    """And LoReFT's positions, which a recomputation in the backward pass has to find again."""
    model = without_dropout(fine_tuned(name, form, vocab_size=5000))
    shared = answers_to_one_prompt()
    wanted = [gradients(model, lt.SFT().loss(model, each)) for each in (batch(), shared)]
    recompute(model, True)
    own, count = blocks_packed(model, lambda: gradients(model, lt.SFT().loss(model, batch())))
    assert count == 3
    same(own, wanted[0], 2e-6)
    if shares(model):
        own, count = blocks_packed(model, lambda: gradients(model, lt.SFT().loss(model, shared)), shared=True)
        assert count == 3
        same(own, wanted[1], 2e-6)
    else:
        assert "from" in str(form)


@pytest.mark.parametrize("form", [lt.LoRA(rank=4), lt.DoRA(rank=4), lt.Prefix(length=3)])
def test_rows_of_several_adapters(form):
    """Each row of a packed batch has its own adapter, in evaluation and with gradients."""
    model = lt.attach(ARCHITECTURES["llama"].build(), form, name="one")
    lt.attach(model, form, name="two")
    perturb(model)
    rows, whose = batch(), ("one", None, "two", "two", "one")
    with lt.rows(model, whose):
        expected = model(**rows).loss
        with torch.no_grad():
            own, count = blocks_packed(model, lambda: model(**rows).loss)
        assert count == 3 and torch.allclose(own, expected, rtol=1e-6)
        own, _ = blocks_packed(model, lambda: model(**rows).loss)
        same(gradients(model, own), gradients(model, expected), 2e-6)


def test_a_prefix_that_is_switched_off_and_on_within():
    model, rows = fine_tuned(form=lt.Prefix(length=3)), batch()
    with lt.disabled(model):
        bare = model(**rows).loss
    expected = model(**rows).loss
    with packed(model):
        assert torch.allclose(model(**rows).loss, expected, rtol=1e-6)
        with lt.disabled(model):
            assert torch.allclose(model(**rows).loss, bare, rtol=1e-6)
        assert torch.allclose(model(**rows).loss, expected, rtol=1e-6)
    lt.detach(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_windows_and_either_attention(attention):
    """A sliding window shorter than the rows, by the mask that the model itself asks for."""
    model = fine_tuned("gemma3")
    model.set_attn_implementation(attention)
    expected = model(**batch()).loss
    own, count = blocks_packed(model, lambda: model(**batch()).loss)
    assert count == 6
    same(gradients(model, own), gradients(model, expected), 2e-6)
    rows = answers_to_one_prompt()
    expected, (own, count) = model(**rows).loss, blocks_packed(model, lambda: model(**rows).loss, shared=True)
    assert count == 6
    same(gradients(model, own), gradients(model, expected), 2e-6)


def test_flash_attention_is_given_the_ends_of_rows(monkeypatch):
    """All rows in one call, by what transformers calls them. (The kernel itself needs a GPU.)"""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def flash(
        module, query, key, value, mask, cu_seq_lens_q=None, cu_seq_lens_k=None, max_length_q=0, max_length_k=0, **more
    ):
        if cu_seq_lens_q is None:
            assert mask is not None  # padded: it would take the padding away itself
            return sdpa_attention_forward(module, query, key, value, None, **more)
        assert mask is None and torch.equal(cu_seq_lens_q, cu_seq_lens_k) and max_length_q == max_length_k == 20
        ends = cu_seq_lens_q.tolist()
        assert cu_seq_lens_q.dtype == torch.int32
        parts = [[t[:, :, a:b] for t in (query, key, value)] for a, b in itertools.pairwise(ends)]
        return torch.cat([sdpa_attention_forward(module, *part, None, **more)[0] for part in parts], 1), None

    model, name = fine_tuned(), "flash_attention_tried"
    expected = model(**batch()).loss
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, name, flash)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, name, flash_attention_mask)
    model.config._attn_implementation = name
    own, count = blocks_packed(model, lambda: model(**batch()).loss)
    assert count == 3 and torch.allclose(own, expected, rtol=1e-6)


def test_what_is_not_packed_is_as_it_was():
    """One row, rows without padding, padding on the left, a cache, generation; and nothing is left behind."""
    model = fine_tuned().eval()
    rows = batch()
    del rows["labels"]
    full = {key: value[2:3].repeat(2, 1) for key, value in rows.items()}
    left = {key: value.flip(1) for key, value in rows.items()}
    given = [full, left, {key: value[:1] for key, value in rows.items()}, rows | {"use_cache": True}]
    wanted = [model(**each).logits for each in given]
    text = model.generate(**left, max_new_tokens=4, do_sample=False)
    for each, expected in zip(given, wanted, strict=True):
        own, count = blocks_packed(model, lambda each=each: model(**each).logits)
        assert count == 0 and torch.equal(own, expected)
    with packed(model):
        assert model.config._attn_implementation == f"{PACKED}sdpa"
        assert torch.equal(model.generate(**left, max_new_tokens=4, do_sample=False), text)
    assert model.config._attn_implementation == "sdpa" and model.config.use_cache is True and packing_now() is None
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert sum(hooks) == 0


def test_there_and_back():
    rows = batch()
    packing = packing_of(rows["attention_mask"])
    assert packing is not None and packing.lengths == list(LENGTHS) and packing.tokens == sum(LENGTHS)
    x = torch.randn(len(LENGTHS), max(LENGTHS), 3)
    real = rows["attention_mask"].bool()
    assert torch.equal(packing.pack(x)[0], x[real]) and torch.equal(packing.unpack(packing.pack(x))[real], x[real])
    assert packing.unpack(packing.pack(x))[~real].abs().sum() == 0
    holes = rows["attention_mask"].clone()
    holes[2, 3] = 0
    assert packing_of(holes) is None and packing_of(holes[:1]) is None and packing_of(torch.ones(2, 4)) is None


def test_only_prompts_that_are_alike_are_shared():
    rows = answers_to_one_prompt()
    packing = packing_of(rows["attention_mask"], rows)
    assert packing is not None and packing.shared is not None
    assert packing.shared.ahead == [0, 3, 3, 0, 0] and packing.lengths == [9, 1, 17, 1, 13]
    x = torch.randn(5, max(LENGTHS), 3)
    x[1:3, :3] = x[0, :3]
    real = rows["attention_mask"].bool()
    assert torch.equal(packing.unpack(packing.pack(x))[real], x[real])
    for more in ({"tasks": torch.zeros(5)}, {"labels": None}, {"labels": rows["input_ids"]}):
        packing = packing_of(rows["attention_mask"], rows | more)
        assert packing is not None and packing.shared is None


class Mixing(nn.Module):
    """A block whose tokens see their neighbours in the stream, whatever the mask says."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.attention_type = block, getattr(block, "attention_type", "full_attention")

    def forward(self, x, *args, **kwargs):
        return self.block(x + 0.1 * x.roll(1, 1), *args, **kwargs)


def test_a_model_that_mixes_tokens_by_itself_is_found_out():
    model = ARCHITECTURES["llama"].build()
    model.model.layers[1] = Mixing(model.model.layers[1])
    assert "numbers" in str(why_not_packed(model))


TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def test_recurrent_models_are_left_as_they_are_and_hybrid_ones_pack_their_attention():
    """A block of convolutions runs padded between packed ones of attention."""
    torch.manual_seed(0)
    mamba = tf.MambaForCausalLM(tf.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2)).eval()
    assert "does not ask" in str(why_not_packed(mamba))
    kinds = ["conv", "full_attention"]
    model = tf.Lfm2ForCausalLM(tf.Lfm2Config(**TINY, intermediate_size=48, layer_types=kinds)).eval()
    assert why_not_packed(model) is None
    wanted = model(**batch()).loss
    own, count = blocks_packed(model, lambda: model(**batch()).loss)
    assert count == 1 and torch.allclose(own, wanted, rtol=1e-6)
