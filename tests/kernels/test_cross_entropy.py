"""The loss in chunks is the model's own, and so are its gradients."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

import luthier as lt
from luthier.methods.objectives import _cross_entropy as cross_entropy
from luthier.methods.objectives._cross_entropy import causal_loss, chunks
from support.architectures import ARCHITECTURES, GQA, Architecture

SCALED = {
    "gemma2": Architecture("Gemma2Config", "Gemma2ForCausalLM", {**GQA, "final_logit_softcapping": 2.0}),
    "cohere": Architecture("CohereConfig", "CohereForCausalLM", {**GQA, "logit_scale": 0.3}),
    "granite": Architecture("GraniteConfig", "GraniteForCausalLM", {**GQA, "logits_scaling": 4.0}),
    "bert": Architecture("BertConfig", "BertLMHeadModel", {**ARCHITECTURES["bert"].settings, "is_decoder": True}),
}
IN_CHUNKS = ("llama", "qwen3", "gemma3", "mixtral", "phi3", "gpt2", "gpt_neox", "bloom", "falcon", *SCALED)
HEAD = "lm_head | q_proj"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Seven tokens a chunk, for vocabularies of any size."""
    monkeypatch.setattr(cross_entropy, "VOCABULARY", 1)
    monkeypatch.setattr(cross_entropy, "FEW", 1)
    monkeypatch.setitem(cross_entropy.CHUNK, "cpu", 7)


def batch_of(architecture: Architecture) -> dict:
    inputs = architecture.inputs(batch=3)
    labels = inputs["input_ids"].clone()
    labels[:, :4], labels[0, 9] = -100, -100
    return inputs | {"labels": labels}


def gradients(loss, model) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def alike(model, batch, tolerance: float = 1e-5) -> None:
    """Losses and gradients of both ways are equal to rounding, and the chunked way was taken."""
    assert chunks(model)
    own, ours = model(**batch).loss, causal_loss(model, batch)
    assert ours.dtype == own.dtype and model not in cross_entropy._WHOLE
    torch.testing.assert_close(ours, own, rtol=1e-6, atol=0)
    expected, found = gradients(own, model), gradients(ours, model)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=10 * tolerance, atol=tolerance * expected_scale(expected)
        )


def expected_scale(gradients_: dict[str, torch.Tensor]) -> float:
    return max(float(g.abs().max()) for g in gradients_.values())


@pytest.mark.parametrize("name", IN_CHUNKS)
def test_loss_and_gradients_are_the_models_own(name):
    architecture = SCALED.get(name) or ARCHITECTURES[name]
    alike(architecture.build(), batch_of(architecture))


@pytest.mark.parametrize("form", [lt.LoRA(rank=2), lt.DoRA(rank=2), lt.Full()], ids=lambda f: f.name())
def test_an_adapter_on_the_head_acts_and_learns(form):
    architecture = ARCHITECTURES["llama"]
    where = "params(lm_head.weight)" if form.name() == "full" else HEAD
    model = lt.attach(architecture.build(), form, where)
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    alike(model, batch_of(architecture))
    assert any("lm_head" in name for name in lt.trainable(model))


def test_a_tied_table_learns_from_both_ends():
    architecture = ARCHITECTURES["gemma3"]
    model = lt.attach(architecture.build(), lt.Full(), "params(model.embed_tokens.weight)")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    alike(model, batch_of(architecture))


def test_prompt_positions_still_come_from_the_labels():
    architecture = ARCHITECTURES["llama"]
    model = lt.attach(architecture.build(), lt.LoReFT(rank=2, positions="f2+l2"))
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    alike(model, batch_of(architecture))


def test_bfloat16_rounds_as_the_plain_loss_does():
    architecture = ARCHITECTURES["llama"]
    model = lt.attach(architecture.build(dtype=torch.bfloat16), lt.LoRA(rank=2), HEAD)
    alike(model, batch_of(architecture), tolerance=1e-2)


def test_items_in_batch_and_evaluation():
    architecture = ARCHITECTURES["llama"]
    model, batch = architecture.build(), batch_of(architecture)
    with torch.no_grad():
        torch.testing.assert_close(causal_loss(model, batch), model(**batch).loss, rtol=1e-6, atol=0)
        counted = batch | {"num_items_in_batch": torch.tensor(50)}
        torch.testing.assert_close(causal_loss(model, counted), model(**counted).loss, rtol=1e-6, atol=0)
    model(**batch).loss.backward()  # nothing of the chunks is left behind
    assert model.loss_function is tf.loss.loss_utils.ForCausalLMLoss and not model.model._forward_hooks


def test_gradient_checkpointing():
    architecture = ARCHITECTURES["llama"]
    model = lt.attach(architecture.build(), lt.LoRA(rank=2), HEAD).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    alike(model, batch_of(architecture))


def test_models_of_another_kind_compute_their_own_loss():
    """OPT goes round its body, BART has a loss of its own, classes are no vocabulary."""
    for name in ("opt", "bart", "bert"):
        architecture = ARCHITECTURES[name]
        model, batch = architecture.build(), architecture.inputs()
        wanted = batch.get("decoder_input_ids", batch["input_ids"])
        batch["labels"] = torch.tensor([0, 1]) if name == "bert" else wanted.contiguous()
        torch.testing.assert_close(causal_loss(model, batch), model(**batch).loss, rtol=0, atol=0)
        assert not chunks(model)


class GoesRound(tf.LlamaForCausalLM):
    """A Llama that can call its body's forward pass past the body's hooks."""

    past = False

    def forward(self, input_ids=None, attention_mask=None, labels=None, logits_to_keep=0, **kwargs):
        body = self.model.forward if self.past else self.model
        hidden = body(input_ids=input_ids, attention_mask=attention_mask)[0]
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept, :])
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=self.vocab_size, **kwargs)
        return tf.modeling_outputs.CausalLMOutputWithPast(loss=loss, logits=logits)


def test_what_is_found_of_one_model_is_not_held_against_another():
    architecture = Architecture("LlamaConfig", "LlamaForCausalLM", GQA)
    config = architecture.build().config
    odd, plain, batch = GoesRound(config), GoesRound(config), batch_of(architecture)
    odd.past = True
    assert chunks(odd) and chunks(plain)
    torch.testing.assert_close(causal_loss(odd, batch), odd(**batch).loss)
    assert not chunks(odd)
    alike(plain, batch)


def test_positions_on_the_head_need_the_whole_batch():
    architecture = ARCHITECTURES["llama"]
    model = lt.attach(architecture.build(), lt.LoReFT(rank=2, positions="f2+l2"), "output(lm_head)")
    assert not chunks(model)


def test_small_vocabularies_and_foreign_losses_are_left_alone(monkeypatch):
    model = ARCHITECTURES["llama"].build()
    monkeypatch.setattr(cross_entropy, "VOCABULARY", 98)
    assert not chunks(model)
    monkeypatch.setattr(cross_entropy, "VOCABULARY", 97)
    assert chunks(model)
    model.loss_function = lambda **_: torch.zeros(())
    assert not chunks(model)


def test_the_logits_of_a_batch_never_exist(monkeypatch):
    """No tensor that the head returns, and none that autograd keeps, has more rows than a chunk."""
    architecture = ARCHITECTURES["llama"]
    model = lt.attach(architecture.build(), lt.LoRA(rank=2), HEAD)
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, output: rows.append(output.shape[:-1].numel()))
    kept: list[int] = []
    keep = lambda t: kept.append(t.shape[:-1].numel() if t.shape[-1:] == (97,) else 0) or t  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        causal_loss(model, batch_of(architecture)).backward()
    assert rows == [3, 7, 7, 7, 2]  # one per row, which nobody reads; 3 rows of 8 labels, one of which is left out
    assert max(kept) <= 7
