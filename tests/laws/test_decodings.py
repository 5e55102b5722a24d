"""The laws of decodings, over the registry: a new file is tested the day it is dropped in."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.core.contracts.component import find, names
from luthier.core.contracts.decoding import Decoding

DECODINGS = names("decodings")


def made(name: str, **settings) -> Decoding:
    method = find("decodings", name)(**settings)
    assert isinstance(method, Decoding)
    return method


def neutral(name: str) -> Decoding:
    return made(name, **dict(made(name).neutral))


def logits(by: Decoding, batch: int = 3, dtype=torch.float64, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = {role: (1, batch, 11) if role in by.several else (batch, 11) for role in by.roles}
    return {role: torch.randn(shape[role], generator=generator, dtype=torch.float64).to(dtype) for role in by.roles}


@pytest.mark.parametrize("name", DECODINGS)
def test_it_states_its_equation_source_and_roles(name):
    by = made(name)
    assert len(by.equation()) > 5 and by.paper and by.name() == name
    assert len(by.roles) > 1 and all(by.roles.values())
    assert by.led() not in by.several and set(by.several) <= set(by.roles)
    assert by.draft is None or by.draft in by.roles
    assert by.neutral and set(by.neutral) <= set(by.settings())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DECODINGS)
def test_neutral_settings_return_the_first_roles_logits_exactly(name, dtype):
    by = neutral(name)
    given = logits(by, dtype=dtype)
    assert torch.equal(by.scores(given), given[by.led()])


@pytest.mark.parametrize("name", DECODINGS)
def test_its_own_settings_are_not_neutral(name):
    by = made(name)
    given = logits(by)
    assert not torch.allclose(by.scores(given).softmax(-1), given[by.led()].softmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DECODINGS)
def test_shape_and_dtype_stay_inputs_are_left_alone_and_something_may_come(name, dtype):
    by = made(name)
    given = logits(by, dtype=dtype)
    before = {role: tensor.clone() for role, tensor in given.items()}
    scores = by.scores(given)
    assert scores.shape == (3, 11) and scores.dtype == dtype and not scores.isnan().any()
    assert (scores > -torch.inf).any(-1).all()
    assert all(torch.equal(given[role], before[role]) for role in given)


@pytest.mark.parametrize("name", DECODINGS)
def test_a_row_does_not_depend_on_its_neighbours(name):
    by = made(name)
    given = logits(by)
    for row in range(3):
        alone = by.scores({role: tensor[..., row : row + 1, :] for role, tensor in given.items()})
        assert torch.allclose(alone[0], by.scores(given)[row], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", DECODINGS)
def test_tokens_have_no_order(name):
    by, order = made(name), torch.randperm(11)
    given = logits(by)
    shuffled = by.scores({role: tensor[..., order] for role, tensor in given.items()})
    assert torch.allclose(shuffled, by.scores(given)[:, order], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", DECODINGS)
def test_logits_count_up_to_a_constant(name):
    """A model's distribution is all that matters of it."""
    by = made(name)
    given = logits(by)
    wanted = by.scores(given).softmax(-1)
    for role in by.roles:
        moved = by.scores(given | {role: given[role] + 5.0})
        assert torch.allclose(moved.softmax(-1), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", DECODINGS)
def test_settings_come_back_from_json_and_bad_ones_are_refused(name):
    method = find("decodings", name)
    assert method.from_dict(method().to_dict()) == method()
    with pytest.raises(lt.LuthierError):
        method.from_dict({"no such setting": 1})
