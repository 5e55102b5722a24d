"""SaRA: what trains, the gradient of its nuclear norm, and the second mask."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.core.adapters.control import tensors
from luthier.core.adapters.optimiser import optimiser
from luthier.methods.updates.sara import SaRA, matrix, nuclear_gradient
from support.calibrated import batches
from support.common import copies, full, moments, run

WHERE = "params(*proj.weight)"
THETA = 0.05


@pytest.mark.parametrize("shape", [(9, 5), (4, 3, 3, 3)])
def test_the_gradient_of_the_nuclear_norm_is_that_of_finite_differences(shape):
    torch.manual_seed(0)
    w = torch.randn(shape, dtype=torch.float64)
    mask = torch.rand(shape) < 0.6
    found = nuclear_gradient(matrix(w * mask)).view(shape) * mask
    assert (found[~mask] == 0).all()
    for at in mask.nonzero()[::5].tolist():
        step = torch.zeros(shape, dtype=torch.float64)
        step[tuple(at)] = 1e-6
        norms = [torch.linalg.matrix_norm(matrix((w + s * step) * mask), "nuc") for s in (1, -1)]
        assert float(found[tuple(at)]) == pytest.approx(float(norms[0] - norms[1]) / 2e-6, rel=1e-5, abs=1e-6)


def test_small_weights_train_and_the_others_keep_their_bits():
    model = full(2, WHERE)
    start = copies(model)
    optimizer = optimiser(model, SaRA(threshold=THETA, narrowest=8), lr=1e-2, steps=8)
    assert all(t.equal(start[key]) for key, t in copies(model).items()), "it begins as the base"
    run(model, optimizer, 4)  # behind the fourth step comes the second mask
    middle = copies(model)
    masks = {key: t.abs() < THETA for key, t in start.items()}
    assert all(((t != start[key]) == masks[key]).all() for key, t in middle.items())
    second = {key: masks[key] & (t.abs() < THETA) for key, t in middle.items()}
    left = {key: int((masks[key] & ~second[key]).sum()) for key in masks}
    assert sum(left.values()) > 0 and moments(optimizer) == 2 * sum(int(m.sum()) for m in second.values())
    run(model, optimizer, 4, first=4)
    for key, t in copies(model).items():
        assert ((t != middle[key]) == second[key]).all()
        assert (t == start[key])[~masks[key]].all()


def test_the_penalty_is_added_to_one_matrix_drawn_for_the_step():
    model, update = full(2, WHERE), SaRA(threshold=THETA, penalty=0.3, narrowest=8)
    optimizer = optimiser(model, update, lr=1e-2, steps=9, seed=4)
    drawn = []
    for step in range(5):
        model(**batches(1, seed=step)[0]).loss.backward()
        plain = {key: p.grad.clone() for key, p in tensors(model).items()}
        given = {}
        handle = optimizer.register_step_pre_hook(lambda *_, given=given: given.update(gathered(optimizer)))
        before = copies(model)
        optimizer.step()
        handle.remove()
        optimizer.zero_grad()
        entries = optimizer.state_dict()["update"]["entries"] if step < 3 else {}
        for key, index in entries.items():
            extra = given[len(index), float(before[key].take(index).sum())] - plain[key].take(index)
            if extra.any():
                mask = torch.zeros_like(before[key]).view(-1).index_fill_(0, index, 1).view_as(before[key])
                expected = 0.3 * nuclear_gradient(before[key] * mask).take(index)
                assert torch.allclose(extra, expected, atol=1e-12)
                drawn.append(key)
    assert len(drawn) == 3 and len(set(drawn)) > 1


def gathered(optimizer) -> dict:
    """The gradients that AdamW steps by, by the number and the sum of the entries."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    return {(len(p), float(p.detach().sum())): p.grad.clone() for p in held if p.dim() == 1 and p.grad is not None}


def test_bad_thresholds_are_told_with_the_bound():
    with pytest.raises(lt.LuthierError, match=r"selects nothing but zeros: the smallest other weight is \d"):
        optimiser(full(2, "params(*norm.weight)"), SaRA(threshold=0.5), lr=1e-3, steps=4)
    padded = full(2, "params(*embed_tokens.weight)")  # a row of zeros, which every threshold is above
    with torch.no_grad():
        padded.get_input_embeddings().weight[0] = 0
        next(iter(lt.trainable(padded).values()))[0] = 0
    with pytest.raises(lt.LuthierError, match=r"smallest other weight is \d"):
        optimiser(padded, SaRA(threshold=1e-12), lr=1e-3, steps=4)
    with pytest.raises(lt.LuthierError, match=r"selects all weights, the largest of which is 1"):
        optimiser(full(2, "params(*norm.weight)"), SaRA(threshold=1.5), lr=1e-3, steps=4)
    with pytest.raises(lt.LuthierError, match="above 0"):
        SaRA(threshold=0.0)
    with pytest.raises(lt.LuthierError, match="use full"):
        optimiser(lt.attach(full(2), lt.LoRA(), name="other"), SaRA(), lr=1e-3, steps=4, name="other")
