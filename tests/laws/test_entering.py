"""The laws of passes that begin at a block: whatever is fitted above, losses and gradients are those of whole ones."""

from __future__ import annotations

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
from luthier.core.errors import LuthierError
from luthier.core.sites.enterable import _InMemory, below, first_trained
from luthier.core.sites.entering import Below, Entry, entered, rows_of
from luthier.core.sites.packing import packed
from luthier.training.context import recompute
from luthier.training.pack import shares
from luthier.training.prepare import prepare
from support.architectures import ARCHITECTURES, base_of
from support.objective_runs import run_of
from support.padded import TEXT, answers_to_one_prompt, batch, gradients, perturb, same, without_dropout

FIRST = 2
"""The only block that is fitted, of three."""
OBJECTIVES = [name for name in names("objectives") if not find("objectives", name, Objective)().samples]


def where(form: lt.Form) -> str:
    """The form's own places, in the last block alone."""
    return f"layers({FIRST}) & ({form.where})"


def tried(model: nn.Module, first: int = FIRST) -> Below:
    with lt.disabled(model):
        found = below(model, first)
    assert isinstance(found, Below), found
    return found


def twice(model: nn.Module, run: Any, dtype: torch.dtype | None = None) -> tuple[Any, Any, Entry]:
    """What `run()` gives when it computes all blocks and keeps, and when it begins at the lowest trained one."""
    made = tried(model)
    with entered(model, made, _InMemory(dtype or made.dtype)) as entry:
        return run(), run(), entry


def untouched(model: nn.Module) -> bool:
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return not hooks and not any("forward" in vars(m) for m in model.modules())


@pytest.mark.parametrize("name", names("forms"))
def test_of_every_form(name):
    """In packed batches and in padded ones, with prompts that rows share too; nothing is left behind."""
    chosen = find("forms", name)
    fields = chosen.__dataclass_fields__
    named = {f: ("a", "b") for f in ("tasks", "experts") if f in fields and isinstance(fields[f].default, tuple)}
    form = chosen(**named if issubclass(chosen, Routed) else {})
    assert isinstance(form, lt.Form)
    model = base_of(name).build()
    try:
        without_dropout(lt.attach(model, form, where=where(form)))
    except LuthierError:
        return pytest.skip("it has no place in one block alone")
    perturb(model)
    model.train()
    first = first_trained(model)
    if first == 0:  # it acts ahead of the blocks
        assert "embed" in str(form.where) or form.sees
        return None
    assert first == FIRST
    rows = answers_to_one_prompt()
    rows |= {"tasks": torch.tensor([0, 1, 1, 0, 1])} if issubclass(chosen, Routed) and chosen.by_task else {}

    def loss() -> torch.Tensor:
        torch.manual_seed(0)  # some forms draw an expert in each pass
        return model(**rows).loss

    expected = gradients(model, loss())
    first_pass, second, entry = twice(model, loss)
    assert entry.begun == 1 and torch.allclose(second, first_pass, rtol=1e-6)
    same(gradients(model, second), expected, 1e-6)
    with packed(model, "tasks" not in rows and shares(model)):
        _, second, entry = twice(model, loss)
    assert entry.begun == 1
    same(gradients(model, second), expected, 2e-6)
    assert untouched(model)
    return None


@pytest.mark.parametrize("name", TEXT)
def test_in_every_architecture(name):
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    stack = "layers(2)" if "gemma3" not in name else "layers(3, 5)"
    lt.attach(model, lt.LoRA(rank=4), where=f"{stack} & all-linear")
    perturb(model)
    without_dropout(model.train())
    found = tried(model, first_trained(model))
    rows = batch()
    if architecture.kind == "encoder":
        rows["labels"] = torch.tensor([0, 1, 1, 0, 1])
    expected = model(**rows).loss
    with entered(model, found, _InMemory(found.dtype)) as entry:
        model(**rows)
        own = model(**{key: value.flip(0) for key, value in rows.items()}).loss  # the rows in another order
    assert entry.begun == 1 and torch.allclose(own, expected, rtol=1e-6)
    same(gradients(model, own), gradients(model, expected), 2e-6)
    assert untouched(model)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_of_every_objective(name, tmp_path):
    chosen = find("objectives", name)()
    assert isinstance(chosen, Objective)
    run, form = run_of(tmp_path, chosen, name)
    prepared = prepare(run)
    loaded = models.load(run.model, task=prepared.task, labels=prepared.examples.labels)
    model = lt.attach(without_dropout(loaded.model), form, where=where(form))
    perturb(model)
    without_dropout(model.train())
    if not first_trained(model):  # a new head of an encoder's pooler, say, is trained too
        return
    rows = data.collator_for(prepared.task, prepared.processor)(list(prepared.train[:6]))
    rows.pop("rows")
    at = At(5, 10, True, lambda given: model(**given).logits.detach())

    def told(seed: int = 0) -> torch.Tensor:
        torch.manual_seed(seed)
        return chosen.loss_and_figures(model, chosen.inputs(rows, at))[0]

    with entered(model, tried(model), _InMemory(torch.float32)) as entry:
        told(1)  # what is kept is of other draws
        again = told()
    once = told()
    draws = not torch.equal(once, told(1))  # masked tokens, or noise on the embeddings: other rows each time
    assert draws or entry.begun >= entry.passes // 2 > 0, (entry.begun, entry.passes)
    assert torch.allclose(again, once, rtol=5e-6, atol=1e-7)
    same(gradients(model, again.sum()), gradients(model, once.sum()), 5e-6)


def fitted(form: lt.Form | None = None, name: str = "llama") -> Any:
    form = form or lt.LoRA(rank=4)
    model = lt.attach(ARCHITECTURES[name].build(), form, where=where(form))
    perturb(model)
    return model.train()


@pytest.mark.parametrize("form", [lt.LoRA(rank=4), lt.LoReFT(rank=2, positions="f2+l2")])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_with_recomputed_blocks(name, form):
    model = without_dropout(fitted(form, name))
    wanted = gradients(model, model(**batch()).loss)
    recompute(model, True)
    with packed(model):
        _, own, entry = twice(model, lambda: gradients(model, model(**batch()).loss))
    assert entry.begun == 1
    same(own, wanted, 2e-6)


def test_what_is_kept_rounded_is_used_rounded_from_the_first():
    model = fitted()
    exact = model(**batch()).loss
    once, again, entry = twice(model, lambda: model(**batch()).loss, torch.bfloat16)
    assert entry.begun == 1 and torch.equal(once, again) and once != exact
    assert torch.allclose(once, exact, rtol=1e-2)


def test_dropout_above_draws_as_in_whole_passes():
    model = fitted(lt.LoRA(rank=4, dropout=0.3))

    def loss() -> torch.Tensor:
        torch.manual_seed(0)
        return model(**batch()).loss

    once, again, entry = twice(model, loss)
    assert entry.begun == 1 and torch.equal(once, again)


def test_rows_that_are_partly_known():
    """Are computed whole; those that are known keep what they had."""
    model = fitted()
    made, kept = tried(model), _InMemory(torch.float32)
    rows = batch()
    some = {key: value[:3] for key, value in rows.items()}
    with entered(model, made, kept) as entry:
        model(**some)
        held = {place: tensor.clone() for place, tensor in kept.held.items()}
        model(**rows)
        assert entry.begun == 0 and len(kept.held) == len(rows["input_ids"])
        model(**some)
        assert entry.begun == 1
    assert all(torch.equal(kept.held[place], tensor) for place, tensor in held.items())


def test_passes_that_are_told_more_are_whole():
    rows = batch()
    with_states, with_cache = rows | {"output_hidden_states": True}, rows | {"use_cache": True}
    left = {key: value.flip(1) for key, value in rows.items()}
    assert rows_of(with_states) is None and rows_of(with_cache) is None and rows_of(left) is None
    model = fitted()
    with entered(model, tried(model), _InMemory(torch.float32)) as entry:
        model(**rows)
        states = model(**with_states).hidden_states
        assert len(states) == 4 and not torch.equal(states[0], states[2])
        text = model.generate(input_ids=rows["input_ids"][2:3], max_new_tokens=3, do_sample=False)
    assert entry.begun == 0
    assert torch.equal(text, model.generate(input_ids=rows["input_ids"][2:3], max_new_tokens=3, do_sample=False))


def test_the_lowest_block_with_something_to_train():
    def first(*places: str, form: lt.Form | None = None) -> int:
        model = ARCHITECTURES["llama"].build()
        for number, place in enumerate(places):
            lt.attach(model, form or lt.LoRA(rank=2), name=f"a{number}", where=place)
        return first_trained(model)

    assert first("layers(2)&q_proj") == 2 and first("layers(2)&q_proj", "layers(1)&q_proj") == 1
    assert first("all-linear") == 0
    assert first("lm_head") == 3 and first("layers(1)&q_proj", "lm_head") == 1
    assert first("embed_tokens") == 0 and first("layers(2)&q_proj", "embed_tokens") == 0
    model = fitted()
    model.model.norm.weight.requires_grad_(True)
    assert first_trained(model) == 2
    model.model.embed_tokens.weight.requires_grad_(True)
    assert first_trained(model) == 0


class Reading(nn.Module):
    """A block that also reads what entered the first one."""

    def __init__(self, block: nn.Module, seen: list) -> None:
        super().__init__()
        self.block, self.attention_type = block, getattr(block, "attention_type", "full_attention")
        self.seen = seen

    def forward(self, x, *args, **kwargs):
        return self.block(x + self.seen[-1], *args, **kwargs)


def test_models_whose_blocks_cannot_be_entered_say_why():
    model = ARCHITECTURES["llama"].build().requires_grad_(False)
    seen: list[torch.Tensor] = []
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: seen.append(output))
    model.model.layers[2] = Reading(model.model.layers[2], seen)
    assert "read more" in str(below(model, 2))
    bert = ARCHITECTURES["bert"].build().requires_grad_(False)
    assert "dropout" in str(below(bert, 2))
    assert isinstance(below(without_dropout(bert), 2), Below)
    sizes: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "num_attention_heads": 4, "embedding_size": 16}
    albert = tf.AlbertForSequenceClassification(tf.AlbertConfig(**sizes, num_hidden_layers=2, intermediate_size=48))
    assert isinstance(below(albert.eval().requires_grad_(False), 1), str)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "RoPE dynamic"),
    ],
)
def test_configurations_by_which_a_row_is_more_than_its_tokens(settings, why):
    model = ARCHITECTURES["llama"].build().requires_grad_(False)
    for name, value in settings.items():
        setattr(model.config, name, value)
    assert why in str(below(model, 2))


def test_router_losses_of_all_blocks_are_computed():
    """A mixture whose loss takes the gates of every block."""
    model = ARCHITECTURES["mixtral"].build().requires_grad_(False)
    first = len(model.model.layers) - 1
    assert isinstance(below(model, first), Below)
    model.config.output_router_logits = True
    assert "output_router_logits" in str(below(model, first))
