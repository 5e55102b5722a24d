"""Switching adapters: who acts, and that nobody else is asked."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn

import luthier as lt
from luthier.core.adapters.attach import state_of
from luthier.core.adapters.container import AdapterContainer
from luthier.core.adapters.control import RowAssignment
from luthier.core.contracts.component import find
from support.architectures import ARCHITECTURES

LLAMA = ARCHITECTURES["llama"]


def several(count: int = 3) -> nn.Module:
    """A model with `count` LoRAs away from their start."""
    model = LLAMA.build().eval()
    for index in range(count):
        lt.attach(model, lt.LoRA(rank=2), name=f"a{index}")
    torch.manual_seed(0)
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(**LLAMA.inputs()).logits


def test_one_adapter_acts_and_no_other():
    model = several()
    alone = []
    for name in ("a0", "a1", "a2"):
        with lt.disabled(model, [other for other in ("a0", "a1", "a2") if other != name]):
            alone.append(logits(model))
    for name, expected in zip(("a0", "a1", "a2"), alone, strict=True):
        assert torch.equal(logits(lt.use(model, name)), expected)
    both = logits(lt.use(model, ["a0", "a2"]))
    assert not torch.equal(both, alone[0]) and not torch.equal(both, alone[2])
    with pytest.raises(lt.LuthierError, match="no adapter named 'a7'"):
        lt.use(model, "a7")


def test_contexts_give_back_what_acted():
    model = lt.use(several(), "a1")
    before = logits(model)
    with lt.rows(model, ["a0", "a2"]):
        pass
    with lt.disabled(model):
        pass
    assert torch.equal(logits(model), before)


def test_a_copy_has_switches_of_its_own():
    model = several(2)
    counterpart = copy.deepcopy(model)
    both = logits(model)
    lt.use(counterpart, "a1")
    assert torch.equal(logits(model), both) and not torch.equal(logits(counterpart), both)


def test_a_switch_looks_at_those_that_act_alone(monkeypatch):
    """However many adapters are loaded, each module sorts the enabled ones."""
    model = several(12)
    seen: list[int] = []
    refresh = AdapterContainer.refresh
    monkeypatch.setattr(AdapterContainer, "refresh", lambda self: (seen.append(len(self.acting)), refresh(self))[1])
    monkeypatch.setattr(AdapterContainer, "tuners", lambda self: pytest.fail("every slot was looked at"))
    lt.use(model, "a3")
    seen.clear()
    lt.use(model, "a4")
    assert max(seen) == 1


def test_detaching_forgets_the_modules():
    model = several(2)
    state = state_of(model)
    lt.detach(model, "a0")
    assert state.containers
    lt.detach(model)
    assert not state.containers and not any(isinstance(module, AdapterContainer) for module in model.modules())


@pytest.mark.parametrize("grad", [True, False])
def test_rows_that_do_not_fit_the_batch_are_refused(grad):
    model = ARCHITECTURES["llama"].build().eval()
    for name in ("a", "b"):
        lt.attach(model, lt.LoRA(rank=2), where="q_proj", name=name)
    for ids, names in (((2, 6), ["a", "b", "a"]), ((1, 6), ["a", "b"])):
        with (
            lt.rows(model, names),
            torch.set_grad_enabled(grad),
            pytest.raises(lt.LuthierError, match="rows were given"),
        ):
            model(torch.ones(ids, dtype=torch.long))


def test_experts_have_tokens_of_any_row():
    config = transformers.SwitchTransformersConfig(
        vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_heads=2, num_experts=2,
        num_layers=2, num_sparse_encoder_layers=2, num_decoder_layers=2, num_sparse_decoder_layers=2,
    )  # fmt: skip
    model = transformers.SwitchTransformersForConditionalGeneration(config).eval()
    for name in ("a", "b"):
        lt.attach(model, lt.LoRA(rank=2), where="wi", name=name, check=False)
    ids = torch.arange(8).view(2, 4)
    with lt.rows(model, ["a", "b"]), pytest.raises(lt.LuthierError, match="experts of a mixture"):
        model(input_ids=ids, decoder_input_ids=ids)


def enter(context) -> None:
    with context:
        pass


def test_merged_adapters_are_not_switched():
    """Their effect is in the weights, so to let one act counts it twice, and to silence it changes nothing."""
    model = several(2)
    both = logits(model)
    lt.merge(model)
    merged = logits(model)
    for act in (
        lambda: lt.enable(model),
        lambda: lt.disable(model, "a0"),
        lambda: lt.use(model, "a0"),
        lambda: enter(lt.disabled(model)),
        lambda: enter(lt.rows(model, ["a0", "a1"])),
        lambda: RowAssignment(model).set(["a0", "a1"]),
    ):
        with pytest.raises(lt.LuthierError, match="unmerge"):
            act()
    assert torch.equal(logits(model), merged)
    assert torch.equal(logits(lt.unmerge(model)), both)


def test_what_is_merged_inside_a_context_stays_silent_behind_it():
    model = several(2)
    both = logits(model)
    with lt.disabled(model, "a0"):
        lt.merge(model)
    assert torch.allclose(logits(model), both, atol=1e-5)
    assert torch.equal(logits(lt.unmerge(model)), both)


def test_inner_rows_give_back_the_outer_ones():
    model = several()
    with lt.rows(model, ["a0", "a2"]):
        expected = logits(model)
        with lt.rows(model, ["a1", None]):
            assert not torch.equal(logits(model), expected)
        assert torch.equal(logits(model), expected)
        with lt.disabled(model):
            pass
        assert torch.equal(logits(model), expected)


def test_rows_inside_an_arrangement_leave_it_standing():
    model = several()
    row_assignment = RowAssignment(model)
    row_assignment.set(["a0", "a2"])
    expected = logits(model)
    with lt.rows(model, ["a1", None]):
        assert not state_of(model).current.frozen
    row_assignment.set(["a0", "a2"])
    assert state_of(model).current.frozen and torch.equal(logits(model), expected)


def test_a_context_knows_what_left_and_what_came():
    model = several()
    with lt.disabled(model):
        base = logits(model)
        lt.detach(model, "a0")
        lt.attach(model, lt.LoRA(rank=2), name="new")
        lt.detach(model, "a2")
        for parameter in lt.trainable(model).values():
            parameter.data += 0.1
        both = logits(lt.enable(model, "a1"))
        lt.disable(model, "a1")
    assert torch.equal(logits(model), both)
    lt.detach(lt.detach(model, "a1"), "new")
    assert torch.equal(logits(model), base)


def test_the_last_one_may_leave_inside_a_context():
    model = several(1)
    with lt.disabled(model):
        base = logits(model)
        lt.detach(model)
    assert torch.equal(logits(model), base)
    model = several(1)
    with lt.rows(model, ["a0", None]):
        lt.detach(model)
        lt.attach(model, lt.LoRA(rank=2), name="new")
    assert all(container.acting for container in state_of(model).containers)


def test_any_name_that_is_allowed_works(tmp_path):
    names = ["train", "fast", "step", "weights", "path", "float", "stack", "T_destination", "forward", "0"]
    model = LLAMA.build().eval()
    for name in names:
        lt.attach(model, lt.LoRA(rank=2), "q_proj", name=name)
    with torch.no_grad():
        for index, parameter in enumerate(lt.trainable(model).values()):
            parameter += 0.01 * index
    assert {key.split(".")[0] for key in lt.trainable(model)} == set(names)
    lt.save(model, tmp_path)
    fresh = lt.load(LLAMA.build().eval(), tmp_path)
    for name in names:
        assert torch.equal(logits(lt.use(fresh, name)), logits(lt.use(model, name)))
    model.load_state_dict(fresh.state_dict())
    copy.deepcopy(model).train().double()
    for name in names:
        lt.detach(model, name)


def test_names_that_are_not_allowed_or_not_there_are_refused(tmp_path):
    model = several(1)
    folder = lt.save(model, tmp_path / "adapter")
    with pytest.raises(lt.LuthierError, match="cannot name an adapter"):
        lt.load(model, folder, name="a.b")
    with pytest.raises(lt.LuthierError, match="no adapter named 'a1'"):
        lt.optimiser(model, find("updates", "lora_pro")(), lr=1e-3, steps=1, name="a1")
