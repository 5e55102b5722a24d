"""A form that acts as the difference to its start, wherever forms can act."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier.core.adapters.control import tensors
from luthier.core.adapters.tuner import START
from luthier.methods.inits.pissa import PiSSA
from support.architectures import ARCHITECTURES

FORM = lt.LoRA(rank=3)


def started(architecture: str = "llama", where: str = "all-linear", name: str = "default", model=None, **settings):
    model = model or ARCHITECTURES[architecture].build(dtype=settings.pop("dtype", torch.float64))
    return lt.attach(model, FORM, where, name, init=PiSSA(), **settings)


def moved(model, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def logits(model, **given):
    with torch.no_grad():
        return model(**(given or ARCHITECTURES["llama"].inputs(2, 9))).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_is_the_bases_bit_for_bit(dtype):
    base = ARCHITECTURES["llama"].build(dtype=dtype)
    assert torch.equal(logits(started(dtype=dtype)), logits(base))


def test_only_the_form_is_trained_and_its_start_stays():
    model = started()
    held = {key: t.detach().clone() for key, t in tensors(model).items()}
    ids = ARCHITECTURES["llama"].inputs(2, 9)["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    for key, tensor in tensors(model).items():
        assert torch.equal(tensor, held[key]) == key.endswith(START) and (tensor.grad is None) == key.endswith(START)
    assert lt.trainable(model, count=True) == lt.trainable(lt.attach(ARCHITECTURES["llama"].build(), FORM), count=True)


def test_gradients_are_those_of_the_frozen_rest():
    """As if W had been replaced by W - s B₀ A₀."""
    model, rest = moved(started()), ARCHITECTURES["llama"].build(dtype=torch.float64)
    lt.attach(rest, FORM)
    for key, tensor in lt.trainable(rest).items():
        tensor.data = tensors(model)[key].data.clone()
    for site in lt.select(rest, "all-linear"):
        b, a = (tensors(model)[f"default.{site.path}.{n}{START}"].detach() for n in "BA")
        rest.get_submodule(site.path).weight.data -= FORM.scale * b @ a
    ids = ARCHITECTURES["llama"].inputs(2, 9)["input_ids"]
    for net in (model, rest):
        net(input_ids=ids, labels=ids).loss.backward()
    theirs = lt.trainable(rest)
    assert all(torch.allclose(t.grad, theirs[key].grad, atol=1e-10) for key, t in lt.trainable(model).items())


def test_compiled_it_is_one_graph_and_the_same():
    torch._dynamo.reset()
    model = moved(started(dtype=torch.float32))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(logits(compiled), logits(model), atol=1e-5)


def test_rows_of_a_batch_use_their_own_start():
    model = moved(started(name="a"))
    lt.attach(model, FORM, name="b")
    moved(model, seed=1)
    ids = ARCHITECTURES["llama"].inputs(3, 9)["input_ids"]
    with lt.rows(model, ["a", None, "b"]):
        mixed = logits(model, input_ids=ids)
    for row, others in enumerate((["b"], ["a", "b"], ["a"])):
        with lt.disabled(model, others):
            assert torch.allclose(mixed[row], logits(model, input_ids=ids[row : row + 1])[0], atol=1e-10)


def test_experts_merge_with_their_starts():
    base = ARCHITECTURES["mixtral"]
    model, inputs = started("mixtral", "experts", dtype=torch.float32), base.inputs(2, 9)
    assert torch.equal(logits(model, **inputs), logits(base.build(), **inputs))
    adapted = logits(moved(model), **inputs)
    assert torch.allclose(logits(lt.merge(model), **inputs), adapted, atol=1e-4)


def test_conv1d_layers_start_by_their_own_weight():
    base = ARCHITECTURES["gpt2"]
    model, inputs = started("gpt2"), base.inputs(2, 9)
    assert torch.equal(logits(model, **inputs), logits(base.build(dtype=torch.float64), **inputs))
    adapted = logits(moved(model), **inputs)
    assert torch.allclose(logits(lt.merge(model), **inputs), adapted, atol=1e-10)


def test_exported_it_is_exact_at_twice_the_rank(tmp_path):
    peft = pytest.importorskip("peft")
    model = moved(started(dtype=torch.float32))
    lt.save(model, tmp_path / "a")
    base = ARCHITECTURES["llama"].build()
    assert lt.export(tmp_path / "a", tmp_path / "out", to="peft", base=base) == {}
    held = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {t.shape[0] for key, t in held.items() if "lora_A" in key} == {2 * FORM.rank}
    theirs = peft.PeftModel.from_pretrained(ARCHITECTURES["llama"].build(), tmp_path / "out")
    assert torch.allclose(logits(theirs), logits(model), atol=1e-5)


def test_a_start_that_is_missing_from_the_file_is_told(tmp_path):
    from safetensors.torch import save_file

    from support.forged import reseal

    lt.save(started(), tmp_path / "a")
    file = tmp_path / "a" / "adapter.safetensors"
    held = {key: t for key, t in load_file(file).items() if not key.endswith(f"B{START}")}
    save_file(held, file)
    reseal(tmp_path / "a")
    with pytest.raises(lt.LuthierError, match=r"B_start is missing; expected"):
        lt.load(ARCHITECTURES["llama"].build(dtype=torch.float64), tmp_path / "a")
