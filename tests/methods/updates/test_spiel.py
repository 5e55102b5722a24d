"""SpIEL: which entries leave and which come, what their moments are, and that a dropped one is the base's again."""

from __future__ import annotations

import io

import pytest
import torch

import luthier as lt
from luthier.core.adapters.control import tensors
from luthier.core.adapters.optimiser import optimiser
from luthier.core.adapters.training_plan import training_plan
from luthier.core.contracts.kernel import reference_implementation
from luthier.methods.updates.spiel import SpIEL
from support.calibrated import batches
from support.common import copies, llama, moments, run


def attached(density: float = 0.05):
    torch.manual_seed(3)
    return lt.attach(llama(2), lt.Sparse(density=density), "q_proj, down_proj")


def packed(folder):
    """The small model in NF4."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    llama(2).float().save_pretrained(folder)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)


def positions(model) -> dict[str, torch.Tensor]:
    return {key: t.long().clone() for key, t in tensors(model).items() if key.endswith("index")}


def dense_gradients(model, step: int) -> dict[str, torch.Tensor]:
    """dL/dW of every place's whole weight, found by letting the base's own weight have a gradient."""
    modules = {group.key("index"): group.module for group in training_plan(model, 1).groups}
    for module in modules.values():
        module._parameters["weight"].requires_grad_(True)
    with reference_implementation():
        model(**batches(1, seed=step)[0]).loss.backward()
    found = {key: module._parameters["weight"].grad.flatten().clone() for key, module in modules.items()}
    for module in modules.values():
        module._parameters["weight"].requires_grad_(False).grad = None
    for p in tensors(model).values():
        p.grad = None
    return found


def test_all_leave_at_first_for_the_largest_sums_among_the_candidates():
    model = attached()
    update = SpIEL(every=6, accumulate=2)
    optimizer = optimiser(model, update, lr=1e-2, steps=20)
    first = dense_gradients(model, 0)
    run(model, optimizer, 1)
    second = dense_gradients(model, 1)
    before, old = copies(model), positions(model)
    run(model, optimizer, 1, first=1)
    for key, index in positions(model).items():
        k = len(index)
        candidates = first[key].abs().topk(k).indices
        assert set(index.tolist()) == set(candidates.tolist()), "all k candidates grow where all entries may go"
        values = tensors(model)[key.replace("index", "values")]
        new = ~torch.isin(index, old[key])
        assert new.any() and (values[new] == 0).all() and (values[~new] != 0).all()
        state = optimizer.state[values]
        g, t = torch.stack([first[key][index], second[key][index]]), float(state["step"])
        assert torch.allclose(state["exp_avg"][new] / (1 - 0.9**t), g.mean(0)[new], rtol=1e-9)
        assert torch.allclose(state["exp_avg_sq"][new] / (1 - 0.999**t), g.square().mean(0)[new], rtol=1e-9)
        assert before[key].shape == index.shape


def test_later_the_smallest_leave_for_the_largest_sum_and_the_rest_keep_value_and_moments():
    model = attached()
    update = SpIEL(every=4, accumulate=1, share=0.3)
    optimizer = optimiser(model, update, lr=1e-2, steps=40)
    run(model, optimizer, 4)
    grads, old = dense_gradients(model, 4), positions(model)
    held = {key: {k: t.clone() for k, t in optimizer.state[tensors(model)[key]].items()} for key in copies(model)
            if key.endswith("values")}  # fmt: skip
    plain = torch.optim.AdamW(lt.trainable(twin := lt.attach(llama(2), lt.Sparse(density=0.05), "q_proj, down_proj"))
                              .values(), lr=1e-2, weight_decay=0)  # fmt: skip
    with torch.no_grad():
        for key, t in tensors(twin).items():
            t.copy_(tensors(model)[key])
    for key, state in held.items():
        plain.state[tensors(twin)[key]] = state
    run(twin, plain, 1, first=4)  # the same step without an exchange behind it
    run(model, optimizer, 1, first=4)
    exchanged = 0
    for key, index in positions(model).items():
        name = key.replace("index", "values")
        values, stepped = tensors(model)[name], tensors(twin)[name]
        leaving = stepped.abs().topk(int(len(index) * 0.3 * (1 - 5 / 40)), largest=False).indices
        came, gone = index[~torch.isin(index, old[key])], old[key][~torch.isin(old[key], index)]
        assert len(index) == len(index.unique()) == len(old[key]) and len(came) == len(gone)
        assert set(gone.tolist()) <= set(old[key][leaving].tolist())
        free = grads[key].abs().topk(len(index)).indices
        free = free[~torch.isin(free, old[key])]
        assert set(came.tolist()) == set(free[: len(came)].tolist())
        where = {int(i): n for n, i in enumerate(old[key])}
        state, before = optimizer.state[values], plain.state[stepped]
        for n, i in enumerate(index.tolist()):
            if i in where:
                assert values[n] == stepped[where[i]] and state["exp_avg"][n] == before["exp_avg"][where[i]]
            else:
                assert values[n] == 0
        exchanged += len(came)
    assert exchanged > 0


def test_a_dropped_entry_is_the_base_s_and_the_forward_pass_is_dense_w_plus_scatter():
    model = attached()
    optimizer = optimiser(model, SpIEL(every=2, accumulate=1), lr=1e-2, steps=30)
    seen, count = {key: set(index.tolist()) for key, index in positions(model).items()}, moments(optimizer)
    for step in range(9):
        run(model, optimizer, 1, first=step)
        for key, index in positions(model).items():
            seen[key] |= set(index.tolist())
            assert len(index) == len(index.unique())
    assert moments(optimizer) == 2 * sum(len(index) for index in positions(model).values()) and count == 0
    ids = torch.tensor([[5, 6, 7, 8]])
    given, dropped = model(ids).logits, 0
    base = {group.key("index"): group.base().clone() for group in training_plan(model, 1).groups}
    expected = {}
    for key, index in positions(model).items():
        expected[key] = (
            base[key].flatten().scatter_add(0, index, tensors(model)[key.replace("index", "values")].detach())
        )
    lt.merge(model)
    for group in training_plan(model, 1).groups:
        key, merged = group.key("index"), group.module._parameters["weight"]
        assert torch.equal(merged.flatten(), expected[key])
        left = torch.tensor(sorted(seen[key] - set(positions(model)[key].tolist())))
        dropped += len(left)
        assert torch.equal(merged.flatten()[left], base[key].flatten()[left])
    assert dropped and torch.allclose(model(ids).logits, given, atol=1e-12)
    lt.unmerge(model)


def test_sm3_grows_by_rows_and_columns_without_any_whole_gradient():
    model = attached()
    update = SpIEL(growth="sm3", every=3, share=0.5)
    optimizer = optimiser(model, update, lr=1e-2, steps=12)
    old, states = positions(model), {}
    for step in range(3):
        model(**batches(1, seed=step)[0]).loss.backward()
        for key, index in old.items():
            d_out, d_in = next(g for g in training_plan(model, 1).groups if g.key("index") == key).base().shape
            v = states.setdefault(key, [torch.zeros(d_out).double(), torch.zeros(d_in).double()])
            g = tensors(model)[key.replace("index", "values")].grad
            new = [min(v[0][i // d_in], v[1][i % d_in]) + x**2 for i, x in zip(index.tolist(), g.tolist(), strict=True)]
            for i, x in zip(index.tolist(), new, strict=True):
                v[0][i // d_in], v[1][i % d_in] = max(v[0][i // d_in], x), max(v[1][i % d_in], x)
        optimizer.step()
        optimizer.zero_grad()
    for key, index in positions(model).items():
        score = torch.outer(*states[key]).flatten()
        score[old[key]] = -1
        came = index[~torch.isin(index, old[key])]
        assert len(came) == int(len(index) * 0.5 * 0.75)
        assert torch.isin(came, score.topk(len(came)).indices).all()


@pytest.mark.parametrize("update", [SpIEL(every=4, accumulate=2), SpIEL(growth="sm3", every=3)])
@pytest.mark.parametrize("kept", [1, 3, 5])
def test_it_goes_on_from_anywhere(update, kept):
    model = attached()
    optimizer = optimiser(model, update, lr=1e-2, steps=9)
    run(model, optimizer, kept)
    file, middle = io.BytesIO(), copies(model)
    torch.save(optimizer.state_dict(), file)
    run(model, optimizer, 9 - kept, first=kept)
    expected = copies(model)
    with torch.no_grad():
        for key, t in tensors(model).items():
            t.copy_(middle[key])
    again = optimiser(model, update, lr=1e-2, steps=9, resumes=True)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    run(model, again, 9 - kept, first=kept)
    assert all(t.equal(expected[key]) for key, t in copies(model).items())


def test_a_packed_base_grows_by_the_same_gradients(tmp_path):
    pytest.importorskip("bitsandbytes")
    model = lt.attach(packed(tmp_path), lt.Sparse(density=0.05), "q_proj, down_proj")
    optimizer = optimiser(model, SpIEL(every=3, accumulate=1), lr=1e-2, steps=9)
    old = positions(model)
    for step in range(2):
        model(**batches(1, seed=step)[0]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(not torch.equal(index, old[key]) for key, index in positions(model).items())
    assert all(len(index.unique()) == len(old[key]) for key, index in positions(model).items())


def test_bad_settings_are_told():
    for settings, text in (({"share": 2.0}, "0 to 1"), ({"every": 3, "accumulate": 4}, "at most as many"),
                           ({"growth": "sm3", "accumulate": 4}, "would be ignored")):  # fmt: skip
        with pytest.raises(lt.LuthierError, match=text):
            SpIEL(**settings)
    with pytest.raises(lt.LuthierError, match="use sparse"):
        optimiser(lt.attach(llama(2), lt.LoRA()), SpIEL(), lr=1e-3, steps=9)
    with pytest.raises(lt.LuthierError, match="density of 1"):
        optimiser(attached(1.0), SpIEL(), lr=1e-3, steps=9)
    with pytest.raises(lt.LuthierError, match="is none"):
        optimiser(lt.attach(llama(2), lt.Sparse(), "params(*norm.weight)"), SpIEL(), lr=1e-3, steps=9)
