"""The laws of forms, over the registry: a new file is tested the day it is dropped in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import luthier as lt
from luthier.core.adapters.control import tensors
from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import EDIT_KINDS, Form
from support import fresh
from support.architectures import ARCHITECTURES, base_of, decoding_forms
from support.thinned import kept_of, one_of_each_edit, thinned

FORMS = names("forms")
WRITING = decoding_forms()
"""Those that are tried on a decoder: biases, grouped keys, a tied-free head, so that every form finds sites in it."""


def form_of(name: str, **settings) -> Form:
    form = find("forms", name)(**settings)
    assert isinstance(form, Form)
    return form


def build(name: str, dtype: torch.dtype = torch.float32, layers: int = 3):
    settings = dict(base_of(name).settings, num_hidden_layers=layers)
    return replace(base_of(name), settings=settings).build(dtype=dtype)


def perturb(model, size: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(5)
    for parameter in lt.trainable(model).values():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += size * noise.to(parameter.dtype)


def fitted(name: str, dtype: torch.dtype = torch.float32, layers: int = 3):
    """A model with the form attached and its parameters away from the start."""
    model = lt.attach(build(name, dtype, layers), form_of(name))
    perturb(model)
    return model


def inputs(batch: int = 2, length: int = 12) -> dict:
    return ARCHITECTURES["qwen2"].inputs(batch, length)


def logits(model, **given) -> torch.Tensor:
    with torch.no_grad():
        return model(**(given or inputs())).logits


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max())))


def pytest_generate_tests(metafunc) -> None:
    marks = metafunc.definition.iter_markers("parametrize")
    if "name" in metafunc.fixturenames and not any("name" in m.args[0].split(", ") for m in marks):
        metafunc.parametrize("name", FORMS)


def test_a_form_states_its_equation_source_and_one_face(name):
    form = find("forms", name)
    assert len(form.equation()) > 5 and form.paper
    assert sum(kind in vars(form) for kind in EDIT_KINDS) == 1
    assert form.name() == name


def test_it_starts_as_a_no_op_unless_it_says_otherwise(name):
    model = build(name, torch.float64)
    before = logits(model)
    lt.attach(model, form_of(name))
    assert close(logits(model), before, 1e-12) == form_of(name).identity


def test_every_parameter_gets_a_gradient_and_moves_the_output(name):
    model = build(name)
    before = logits(model)
    lt.attach(model, form_of(name))
    perturb(model)
    assert not close(logits(model), before, 1e-3)
    model(**inputs()).logits.pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lt.trainable(model).values())
    own = {id(p) for p in lt.trainable(model).values()}
    assert all(p.grad is None for p in model.parameters() if id(p) not in own)


def test_training_moves_the_adapter_alone(name):
    model = build(name)
    base = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    lt.attach(model, form_of(name))
    start = {key: p.detach().clone() for key, p in lt.trainable(model).items()}
    optimizer = torch.optim.AdamW(lt.trainable(model).values(), lr=1e-2, weight_decay=0.1)
    ids = inputs()["input_ids"]
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    state = model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in base.items())
    assert all(not torch.equal(p, start[key]) for key, p in lt.trainable(model).items())
    assert losses[-1] < losses[0]


def test_the_count_is_exact(name):
    model = lt.attach(build(name), form_of(name))
    own = {id(p): p.numel() for p in tensors(model).values() if p.requires_grad}
    assert lt.trainable(model, count=True) == sum(own.values())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(own.values())
    assert sum(row["parameters"] for row in lt.describe(model)) == sum(own.values())


def test_saved_and_loaded_it_is_the_same(name, tmp_path):
    model = fitted(name)
    lt.save(model, tmp_path / "adapter")
    loaded = lt.load(build(name), tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model))
    assert all(torch.equal(p, lt.trainable(loaded)[key]) for key, p in lt.trainable(model).items())


def test_merged_it_is_the_same_and_unmerged_the_base_is_back(name):
    model = fitted(name, torch.float64)
    adapted = logits(model)
    base = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    try:
        lt.merge(model)
    except lt.LuthierError as error:
        assert "cannot be merged" in str(error)
        sites = lt.select(build(name), form_of(name).where)
        assert not form_of(name).linear or any(s.kind in ("stream", "cache") for s in sites)
        return
    assert close(logits(model), adapted, 1e-10)
    lt.unmerge(model)
    assert torch.equal(logits(model), adapted)
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in base.items())


def test_relative_to_its_start_it_starts_as_a_no_op_and_keeps_the_laws(name, tmp_path):
    model, form = build(name, torch.float64), form_of(name)
    before = logits(model)
    if form.edit_kind in ("cache", "inside", "aside"):
        with pytest.raises(lt.LuthierError, match="no start can be subtracted"):
            lt.attach(model, form, subtract_start=True)
        return
    lt.attach(model, form, subtract_start=True)
    assert torch.equal(logits(model), before)
    plain = lt.attach(build(name, torch.float64), form)
    assert lt.trainable(model).keys() == lt.trainable(plain).keys()
    perturb(model)
    adapted = logits(model)
    assert not close(adapted, before, 1e-3)
    lt.save(model, tmp_path / "adapter")
    assert torch.equal(logits(lt.load(build(name, torch.float64), tmp_path / "adapter")), adapted)
    if form.linear and not any(site.kind == "stream" for site in lt.select(build(name), form.where)):
        assert close(logits(lt.merge(model)), adapted, 1e-10)
        lt.unmerge(model)
    assert torch.equal(logits(lt.detach(model)), before)


def test_detached_the_model_is_what_it_was(name):
    model = build(name)
    keys, kinds = set(model.state_dict()), {p: type(m) for p, m in model.named_modules()}
    before = logits(model)
    lt.attach(model, form_of(name))
    assert keys <= set(model.state_dict())
    assert all(isinstance(model.get_submodule(p), kind) for p, kind in kinds.items())
    lt.detach(model)
    assert set(model.state_dict()) == keys
    assert {p: type(m) for p, m in model.named_modules()} == kinds
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(logits(model), before)


def test_disabled_it_is_the_base(name):
    model = build(name)
    before = logits(model)
    lt.attach(model, form_of(name))
    perturb(model)
    with lt.disabled(model):
        assert torch.equal(logits(model), before)
    assert not close(logits(model), before, 1e-3)


@pytest.mark.parametrize("name", kept_of(FORMS, one_of_each_edit()))
def test_compiled_it_is_one_graph_and_the_same(name):
    torch._dynamo.reset()
    model = fitted(name, layers=2 if form_of(name).edit_kind == "aside" else 1)  # tracing takes seconds a layer
    compiled = torch.compile(model, fullgraph=True, backend="eager")  # the next law lowers one of each kind of edit
    assert close(logits(compiled), logits(model))


ONE_PER_EDIT_KIND = list({(find("forms", n).edit_kind, find("forms", n).kinds[0]): n for n in FORMS}.values())  # type: ignore
ONE_PER_EDIT_KIND = [n for n in ONE_PER_EDIT_KIND if find("forms", n).edit_kind not in ("inside", "aside")]  # type: ignore
"""A module's class says that it is adapted, whatever the kind of edit; these two take seconds more to trace."""


@pytest.mark.parametrize("name", kept_of(ONE_PER_EDIT_KIND, {find("forms", n).edit_kind: n for n in FORMS}.values()))
def test_attached_after_compiling_it_acts(name):
    torch._dynamo.reset()
    model = build(name, layers=1)
    compiled = torch.compile(model, backend="aot_eager")
    before = logits(compiled)
    lt.attach(model, form_of(name))
    perturb(model)
    assert not close(logits(compiled), before, 1e-3)
    assert close(logits(compiled), logits(model))


@pytest.mark.parametrize("name, reentrant", thinned(FORMS, [False, True], 2))
def test_recomputed_gradients_are_the_same(name, reentrant):
    """Two passes, then the gradient of the first: a recomputation must meet the call that it repeats."""
    model = fitted(name).train()
    ids = inputs()["input_ids"]
    labels = ids.clone()
    labels[:, :5] = -100

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(9)  # some draw in training
        loss = model(input_ids=ids, labels=labels).loss
        model(input_ids=ids[:1, :9], labels=labels[:1, :9])
        loss.backward()
        return {key: p.grad.clone() for key, p in lt.trainable(model).items()}

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    again = gradients()
    assert all(close(again[key], plain[key], 1e-6) for key in plain)


@pytest.mark.parametrize("name", [name for name in FORMS if name not in WRITING])
def test_what_reads_whole_rows_is_refused_where_a_model_writes_token_by_token(name):
    model = ARCHITECTURES["qwen2"].build()
    with pytest.raises(lt.LuthierError, match=f"{name} reads whole rows, and Qwen2ForCausalLM writes token by token"):
        lt.attach(model, form_of(name))
    assert not any("adapters" in path for path, _ in model.named_modules())
    with pytest.raises(lt.LuthierError, match="positions='f2' cannot narrow it"):
        form_of(name, positions="f2")


@pytest.mark.parametrize("name", WRITING)
def test_cached_is_uncached(name):
    model = fitted(name, torch.float64)
    ids = inputs()["input_ids"]
    with lt.prompt(model, 8):
        whole = logits(model, input_ids=ids)
    with torch.no_grad():
        first = model(input_ids=ids[:, :8], use_cache=True)
        steps, cache = [first.logits], first.past_key_values
        for i in range(8, ids.shape[1]):
            out = model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True)
            steps.append(out.logits)
    assert close(torch.cat(steps, dim=1), whole, 1e-10)


@pytest.mark.parametrize("name, side", thinned(FORMS, ["left", "right"], 2))
def test_a_padded_row_is_the_row_alone(name, side):
    model = fitted(name, torch.float64)
    ids, lengths = inputs(3)["input_ids"], [12, 7, 3]
    mask, padded = torch.zeros_like(ids), torch.zeros_like(ids)
    spans = [slice(12 - n, 12) if side == "left" else slice(n) for n in lengths]
    for i, (n, span) in enumerate(zip(lengths, spans, strict=True)):
        mask[i, span], padded[i, span] = 1, ids[i, :n]
    places = (mask.cumsum(1) - 1).clamp(min=0)
    together = logits(model, input_ids=padded, attention_mask=mask, position_ids=places)
    for i, (n, span) in enumerate(zip(lengths, spans, strict=True)):
        assert close(together[i, span], logits(model, input_ids=ids[i : i + 1, :n])[0], 1e-10)


@pytest.mark.parametrize("name", WRITING)
def test_batched_generation_is_one_by_one(name):
    model = fitted(name, torch.float64)
    ids = inputs(2)["input_ids"]
    mask = torch.ones_like(ids)
    ids[1, :5], mask[1, :5] = 0, 0
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    together = model.generate(input_ids=ids, attention_mask=mask, **settings)
    uncached = model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **settings)
    assert torch.equal(together, uncached)
    assert torch.equal(together[0], model.generate(input_ids=ids[:1], **settings)[0])
    assert torch.equal(together[1, 5:], model.generate(input_ids=ids[1:, 5:], **settings)[0])


def test_rows_of_a_batch_use_their_own_adapter(name):
    model = build(name, torch.float64)
    for key in ("a", "b"):
        lt.attach(model, form_of(name), name=key)
        perturb(model)
    ids = inputs(3)["input_ids"]
    with lt.rows(model, ["a", None, "b"]):
        mixed = logits(model, input_ids=ids)
    with lt.disabled(model):
        assert close(mixed[1], logits(model, input_ids=ids[1:2])[0], 1e-10)
    for row, other in ((0, "b"), (2, "a")):
        with lt.disabled(model, other):
            assert close(mixed[row], logits(model, input_ids=ids[row : row + 1])[0], 1e-10)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_it_runs_on_a_half_precision_base_with_float32_masters(name, half):
    model = fitted(name, half)
    assert all(p.dtype == torch.float32 for p in lt.trainable(model).values())
    y = model(**inputs()).logits
    assert y.dtype == half and bool(y.isfinite().all())
    y.float().pow(2).mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in lt.trainable(model).values())


def test_it_runs_on_a_quantised_base(name, tmp_path):
    """4-bit NF4 on the CPU; forms on bare parameters meet only the unpacked ones."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BitsAndBytesConfig

    settings = dict(base_of(name).settings, hidden_size=64, intermediate_size=128, head_dim=16)
    replace(base_of(name), settings=settings).build().save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = (AutoModelForCausalLM if name in WRITING else AutoModelForMaskedLM).from_pretrained(
        tmp_path, quantization_config=config
    )
    form = form_of(name)
    if "param" in form.kinds and form.where.startswith("params"):
        lt.attach(model, form, where="params(*norm.weight), params(*_proj.bias)")
    else:
        lt.attach(model, form)
    with lt.disabled(model):
        before = logits(model)
    if form.identity:
        assert close(logits(model), before, 1e-4)
    perturb(model)
    assert not close(logits(model), before, 1e-2)
    model.train()(**inputs()).logits.pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lt.trainable(model).values())


REST = [name for name in FORMS if name not in one_of_each_edit()]


@pytest.mark.long
@pytest.mark.parametrize("forms", [one_of_each_edit(), pytest.param(REST, marks=pytest.mark.thorough)], ids=len)
def test_sharded_over_two_processes_it_is_the_same(forms):
    """FSDP2 in both orders, two gloo ranks against one process."""
    script = Path(__file__).parents[1] / "support" / "sharded.py"
    done = fresh.run(script, *forms, ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("shard-first") == done.stdout.count("adapt-first") == len(forms)
