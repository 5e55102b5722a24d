"""Attaching: what is refused, what composes, what merging keeps."""

from __future__ import annotations

import copy
from typing import cast

import pytest
import torch
from torch import nn

import luthier as lt
from luthier.core.contracts.component import find, names
from luthier.core.errors import LuthierError
from support.architectures import ARCHITECTURES


def build(architecture: str = "llama", dtype: torch.dtype = torch.float64):
    return ARCHITECTURES[architecture].build(dtype=dtype)


def perturb(model) -> None:
    for parameter in lt.trainable(model).values():
        parameter.data += 0.2 * torch.randn_like(parameter)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**ARCHITECTURES["llama"].inputs()).logits


class Bypass(nn.Module):
    """Reads the weight of a layer and never calls it."""

    def __init__(self, inner) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x, *args, **kwargs):
        return nn.functional.linear(x, self.inner.weight)


class Hidden(Bypass):
    """Reads it past everybody."""

    def forward(self, x, *args, **kwargs):
        return nn.functional.linear(x, self.inner._parameters["weight"])


def test_a_layer_that_the_model_bypasses_is_refused_and_nothing_is_left():
    model = build()
    for block in model.model.layers:
        block.mlp.up_proj = Hidden(block.mlp.up_proj)
    kinds = {path: type(module) for path, module in model.named_modules()}
    with pytest.raises(lt.LuthierError, match=r"up_proj\.inner"):
        lt.attach(model, lt.LoRA(), where="*.inner")
    assert {path: type(module) for path, module in model.named_modules()} == kinds


@pytest.mark.parametrize(("form", "where"), [(lt.LoRA(), "*.inner"), (lt.Full(), "params(*.inner.weight)")])
def test_a_weight_is_met_wherever_it_is_read(form, where):
    model = build()
    for block in model.model.layers:
        block.mlp.up_proj = Bypass(block.mlp.up_proj)
    lt.attach(model, form, where=where)
    before = logits(model)
    perturb(model)
    assert not torch.equal(logits(model), before)


@pytest.mark.parametrize(
    ("form", "where", "message"),
    [
        (lt.LoRA(), "nothing_here", "matches nothing"),
        (lt.LoRA(), "qproj", "q_proj"),
        (lt.LoRA(), "stream", "kind"),
        (lt.Prefix(), "q_proj", "kind"),
        (lt.LoRA(), "q_proj & k_proj", "selects nothing"),
        (lt.LoRA(), "q_proj - q_proj", "selects nothing"),
        (lt.LoRA(), "all-linear & layers(1, 0)", "1 comes behind 0"),
        (lt.LoRA(), "all-linear & layers(-1, 0)", "-1 comes behind 0"),
        (lt.LoRA(), [], "empty"),
        (lt.LoReFT(rank=99), "stream", "lower the rank"),
    ],
)
def test_what_cannot_be_is_refused(form, where, message):
    model = build()
    with pytest.raises(lt.LuthierError, match=message):
        lt.attach(model, form, where=where)
    with pytest.raises(lt.LuthierError, match="no adapter"):
        lt.trainable(model)


def test_a_name_acts_once_at_a_site():
    model = lt.attach(build(), lt.LoRA(), where="q_proj")
    with pytest.raises(lt.LuthierError, match="already acts"):
        lt.attach(model, lt.IA3(), where="q_proj, k_proj")
    lt.attach(model, lt.IA3(), where="k_proj")
    lt.attach(model, lt.IA3(), where="q_proj", name="other")
    with pytest.raises(lt.LuthierError, match="did you mean 'other'"):
        lt.detach(model, "othe")


def test_named_adapters_stack_switch_and_leave():
    model = build()
    base = logits(model)
    lt.attach(model, lt.LoRA(), name="a")
    perturb(model)
    only_a = logits(model)
    lt.attach(model, lt.WeGeFT(), name="b")
    perturb_b = {k: p for k, p in lt.trainable(model).items() if k.startswith("b.")}
    for parameter in perturb_b.values():
        parameter.data += 0.2 * torch.randn_like(parameter)
    both = logits(model)
    lt.disable(model, "b")
    assert torch.equal(logits(model), only_a)
    lt.enable(model, "b")
    assert torch.equal(logits(model), both)
    lt.merge(model)
    assert torch.allclose(logits(model), both, atol=1e-10)
    lt.unmerge(model)
    assert torch.equal(logits(model), both)
    lt.detach(model, "b")
    assert torch.equal(logits(model), only_a)
    lt.detach(model)
    assert torch.equal(logits(model), base)


def test_merging_a_tied_table_unties_the_head_and_unmerging_ties_it_again():
    settings = dict(ARCHITECTURES["llama"].settings, tie_word_embeddings=True)
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**settings)).double().eval()
    lt.attach(model, lt.LoRA(), where="embeddings")
    perturb(model)
    adapted = logits(model)
    with pytest.warns(UserWarning, match="tied"):
        lt.merge(model)
    assert torch.allclose(logits(model), adapted, atol=1e-10) and not model.config.tie_word_embeddings
    lt.unmerge(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight and model.config.tie_word_embeddings


def test_full_training_of_a_tied_tensor_keeps_it_tied(tmp_path):
    settings = dict(ARCHITECTURES["llama"].settings, tie_word_embeddings=True)
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**settings)).double().eval()
    lt.attach(model, lt.Full())
    perturb(model)
    adapted = logits(model)
    lt.merge(model)
    assert torch.allclose(logits(model), adapted, atol=1e-12)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    lt.unmerge(model)
    lt.merge(model)
    state = {k: v for k, v in model.state_dict().items() if ".adapters." not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.allclose(logits(again), adapted, atol=1e-12)


def test_shared_parameters_are_one_tensor():
    model = lt.attach(build(), lt.WeGeFT(rank=4, share="type"), where="q_proj, v_proj")
    assert len(lt.trainable(model)) == 4
    first, last = (model.model.layers[i].self_attn.q_proj.adapters.tuners()[0] for i in (0, -1))
    assert first.phi is last.phi


def test_accelerates_hooks_keep_the_adapter():
    from accelerate.hooks import ModelHook, add_hook_to_module

    model = build()
    for block in model.model.layers:
        add_hook_to_module(block.self_attn.q_proj, ModelHook())
    before = logits(model)
    lt.attach(model, lt.LoRA(), where="q_proj")
    perturb(model)
    moved = logits(model)
    assert not torch.allclose(moved, before)
    lt.detach(model)
    assert torch.equal(logits(model), before)


def test_a_forward_replaced_on_the_instance_is_refused():
    model = build()
    layer = model.model.layers[0].self_attn.q_proj
    layer.forward = layer.forward
    with pytest.raises(lt.LuthierError, match="attach first"):
        lt.attach(model, lt.LoRA(), where="q_proj")


def test_a_merged_model_is_not_adapted_further():
    model = lt.attach(build(), lt.LoRA())
    lt.merge(model)
    for act in (lambda: lt.attach(model, lt.LoRA(), name="b"), lambda: lt.detach(model), lambda: lt.merge(model)):
        with pytest.raises(lt.LuthierError, match="merged"):
            act()


def test_a_deep_copy_is_a_model_of_its_own():
    model = lt.attach(build(), lt.WeGeFT(share="type"))
    perturb(model)
    counterpart = copy.deepcopy(model)
    assert torch.equal(logits(counterpart), logits(model))
    perturb(counterpart)
    assert not torch.equal(logits(counterpart), logits(model))
    lt.detach(counterpart)
    assert lt.trainable(model)


@pytest.mark.parametrize("form", [lt.LoRA(dropout=0.5), lt.WeGeFT(dropout=0.5)])
def test_merging_in_training_mode_leaves_the_noise_out(form):
    model = lt.attach(build(), form)
    perturb(model)
    adapted = logits(model)
    lt.merge(model.train())
    assert all(module.training for module in model.modules())
    assert torch.allclose(logits(model.eval()), adapted, atol=1e-10)


def test_a_model_in_ddp_is_saved_and_merged_as_itself_and_adapted_no_more(tmp_path):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        plain = lt.attach(build(), lt.LoRA())
        perturb(plain)
        moved, wrapped = logits(plain), torch.nn.parallel.DistributedDataParallel(plain)
        folder = lt.save(wrapped, tmp_path / "adapter")
        assert torch.equal(logits(lt.load(build(), folder)), moved)
        lt.merge(wrapped)
        assert torch.allclose(logits(plain), moved)
        lt.unmerge(wrapped)
        for adapt in (lambda: lt.attach(wrapped, lt.LoRA(), name="b"), lambda: lt.load(wrapped, folder, "b")):
            with pytest.raises(LuthierError, match="adapt the model, then wrap it"):
                adapt()
        assert torch.equal(logits(plain), moved)
    finally:
        torch.distributed.destroy_process_group()


ON_TENSORS = [form for form in (cast(type[lt.Form], find("forms", n)) for n in names("forms")) if "param" in form.kinds]


@pytest.mark.parametrize("cls", ON_TENSORS, ids=lambda cls: cls.name())
def test_forms_of_matrices_refuse_vectors(cls):
    form, model = cls(), build()
    if form.elementwise:
        assert lt.trainable(lt.attach(model, form, where="params(*norm.weight)"))
        return
    with pytest.raises(LuthierError, match=r"changes matrices, and params\(.*norm.weight\) has 1 axis"):
        lt.attach(model, form, where="params(*norm.weight)")


def test_rows_that_are_arranged_are_let_go_before_merging():
    model = lt.attach(build(), lt.LoRA())
    with lt.rows(model, ["default", None]), pytest.raises(LuthierError, match="let them go"):
        lt.merge(model)
    lt.unmerge(lt.merge(model))


def test_a_compiled_model_is_the_model_it_wraps(tmp_path):
    plain = build()
    counterpart, flags = copy.deepcopy(plain), {path: p.requires_grad for path, p in plain.named_parameters()}
    base, compiled = logits(plain), torch.compile(plain, backend="eager")
    assert lt.attach(compiled, lt.LoRA(), where=lt.select(compiled, "q_proj")) is compiled
    perturb(compiled)
    moved = logits(plain)
    assert not torch.equal(moved, base) and torch.equal(logits(compiled), moved)
    lt.merge(compiled)
    assert torch.allclose(logits(plain), moved) and lt.rounding(plain)
    lt.unmerge(plain)
    folder = lt.save(compiled, tmp_path / "adapter")
    other = torch.compile(copy.deepcopy(counterpart), backend="eager")
    assert lt.load(other, folder) is other and torch.equal(logits(other), moved)
    assert torch.equal(logits(lt.load(counterpart, folder)), moved)
    for adapt in (lambda: compiled, lambda: torch.compile(lt.attach(plain, lt.LoRA()))):
        lt.detach(adapt())
        assert {path: p.requires_grad for path, p in plain.named_parameters()} == flags
        assert torch.equal(logits(plain), base)
