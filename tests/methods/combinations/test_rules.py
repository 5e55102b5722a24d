"""Each combination against the plain arithmetic of its paper, in float64."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.core.numerics.delta import Delta
from luthier.methods.combinations.breadcrumbs import Breadcrumbs
from luthier.methods.combinations.composable import Composable
from luthier.methods.combinations.dare import DARE
from luthier.methods.combinations.lines import LiNeS
from luthier.methods.combinations.portllm import PortLLM
from luthier.methods.combinations.task_arithmetic import TaskArithmetic
from luthier.methods.combinations.ties import TIES
from luthier.methods.combinations.transfer import Transfer
from support.plain import breadcrumbs, dense, place, ties

SHAPES = [(6, 10), (7,), (2, 3, 5)]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-12, atol=1e-14)


# --- task arithmetic -------------------------------------------------------------------------------


def test_task_arithmetic_of_low_rank_deltas_is_their_stack():
    deltas = [Delta.low_rank(torch.randn(8, r).double(), torch.randn(r, 9).double()) for r in (2, 3)]
    merged = TaskArithmetic(scale=2.0).merge(deltas, [0.5, -1.0], place(8, 9))
    assert merged.rank == 5
    assert same(merged.dense(), deltas[0].dense() - 2 * deltas[1].dense())


# --- TIES ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("density", "weights"), [(0.2, [1, 1, 1]), (0.5, [0.7, 0.2, 0.4]), (1.0, [1.0, -0.5, 0.3])])
def test_ties_is_trim_elect_and_mean(shape, density, weights):
    deltas = dense(*shape)
    merged = TIES(density=density, scale=1.5).merge(deltas, weights, place(*shape)).dense()
    assert same(merged, ties([d.dense() for d in deltas], weights, density, 1.5))


def test_ties_gives_a_sum_of_zero_the_sign_of_most():
    one = Delta.dense_of(torch.tensor([1.0, 2.0, 3.0]))
    other = Delta.dense_of(torch.tensor([-1.0, 2.0, 3.0]))
    assert TIES(density=1.0).merge([one, other], [1, 1], place(3)).dense().tolist() == [1.0, 2.0, 3.0]
    assert TIES(density=1.0).merge([-one, -other], [1, 1], place(3)).dense().tolist() == [-1.0, -2.0, -3.0]


def test_ties_of_a_negative_weight_subtracts():
    (delta,) = dense(4, 5, count=1)
    assert same(TIES(density=1.0).merge([delta], [-1.0], place(4, 5)).dense(), -delta.dense())


def test_ties_takes_no_whole_delta_from_a_small_tensor():
    assert TIES(density=0.1).merge(dense(3, count=1), [1.0], place(3)).dense().count_nonzero() == 1


# --- DARE ------------------------------------------------------------------------------------------


def test_dare_drops_and_rescales():
    (delta,) = dense(200, 50, count=1)
    merged = DARE(drop=0.8).merge([delta], [1.0], place(200, 50)).dense()
    left = merged != 0
    assert abs(float(left.double().mean()) - 0.2) < 0.02
    assert same(merged[left], delta.dense()[left] / 0.2)


def test_dare_keeps_the_expectation():
    (delta,) = dense(3, 4, count=1)
    draws = [DARE(drop=0.5, seed=s).merge([delta], [1.0], place(3, 4)).dense() for s in range(4000)]
    assert torch.allclose(torch.stack(draws).mean(0), delta.dense(), atol=0.1)


def test_dare_follows_from_seed_name_and_input():
    deltas = dense(6, 7, count=2)

    def drawn(seed: int = 0, path: str = "x.weight", pair=deltas):
        return DARE(drop=0.5, seed=seed).merge(pair, [1.0, 1.0], place(6, 7, path=path)).dense()

    assert torch.equal(drawn(), drawn())
    assert not torch.equal(drawn(), drawn(seed=1)) and not torch.equal(drawn(), drawn(path="y.weight"))
    twice = drawn(pair=[deltas[0], deltas[0]]) * 0.5
    assert not torch.equal(twice != 0, DARE(drop=0.5).merge(deltas[:1], [1.0], place(6, 7)).dense() != 0)


def test_dare_then_ties_is_ties_of_what_is_left():
    deltas = dense(9, 8, count=2)
    alone = [DARE(drop=0.5).merge([d], [1.0], place(9, 8)).dense() for d in deltas[:1]]
    left = [alone[0], (DARE(drop=0.5).merge(deltas, [1.0, 1.0], place(9, 8)) - Delta.dense_of(alone[0])).dense()]
    merged = DARE(drop=0.5, then="ties").merge(deltas, [1.0, 1.0], place(9, 8)).dense()
    assert same(merged, ties(left, [1.0, 1.0], 0.2, 1.0))


# --- Breadcrumbs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("gamma", "beta"), [(0.006, 0.15), (0.2, 0.5), (0.9, 0.9)])
def test_breadcrumbs_keeps_the_next_of_each_row(shape, gamma, beta):
    deltas = dense(*shape)
    merged = Breadcrumbs(gamma=gamma, beta=beta, alpha=0.3).merge(deltas, [1, 1, 1], place(*shape)).dense()
    assert same(merged, 0.3 * sum(breadcrumbs(d.dense(), gamma, beta) for d in deltas))


def test_breadcrumbs_keeps_the_share_beta_of_every_row():
    (delta,) = dense(50, 200, count=1)
    merged = Breadcrumbs(alpha=1.0).merge([delta], [1.0], place(50, 200)).dense()
    assert (merged != 0).sum(1).tolist() == [30] * 50
    largest = delta.dense().abs().argmax(1)
    assert not merged.gather(1, largest[:, None]).any()


def test_breadcrumbs_without_masks_is_task_arithmetic():
    deltas = dense(5, 6)
    merged = Breadcrumbs(gamma=0.0, beta=1.0, alpha=0.4).merge(deltas, [1, 2, 3], place(5, 6)).dense()
    assert same(merged, TaskArithmetic(scale=0.4).merge(deltas, [1, 2, 3], place(5, 6)).dense())


@pytest.mark.parametrize("width", [1, 2, 6])
def test_breadcrumbs_takes_no_whole_delta_from_a_small_tensor(width):
    merged = Breadcrumbs(alpha=1.0).merge(dense(4, width, count=1), [1.0], place(4, width)).dense()
    assert (merged != 0).sum(1).tolist() == [1] * 4


# --- LiNeS -----------------------------------------------------------------------------------------


def test_lines_grows_with_the_block():
    (delta,) = dense(3, 3, count=1)
    factors = []
    for layer in (0, 1, 2, 3, None):
        merged = LiNeS(alpha=0.2, beta=0.6).merge([delta], [1.0], place(3, 3, layer=layer)).dense()
        factors.append(float((merged / delta.dense()).mean()))
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.2])


@pytest.mark.parametrize("alpha", [None, 0.0, 0.4])
def test_lines_leaves_the_last_block_of_one_input_alone(alpha):
    (delta,) = dense(3, 3, count=1)
    assert same(LiNeS(alpha=alpha).merge([delta], [1.0], place(3, 3, layer=3)).dense(), delta.dense())
    assert same(LiNeS(alpha=alpha).merge([delta], [1.0], place(3, 3, layer=0, depth=1)).dense(), delta.dense())


@pytest.mark.parametrize("then", ["task_arithmetic", "ties"])
def test_lines_of_several_starts_at_the_size_of_a_mean(then):
    sums, merged = 0.0, 0.0
    everything = [dense(4, 5, seed=s) for s in range(3)]
    totals: dict[str, float] = {}
    for deltas in everything:
        for key, value in LiNeS(then=then).survey(deltas, [1, 1, 1], place(4, 5)).items():
            totals[key] = totals.get(key, 0.0) + value
        full = [d.dense() for d in deltas]
        sums += float(sum(full).abs().sum())
        joined = sum(full) if then == "task_arithmetic" else ties(full, [1, 1, 1], 0.2, 1.0)
        merged += float(joined.abs().sum())
    at = place(4, 5, layer=None, totals=totals)
    found = LiNeS(then=then).merge(everything[0], [1, 1, 1], at).dense()
    full = [d.dense() for d in everything[0]]
    wanted = sum(full) if then == "task_arithmetic" else ties(full, [1, 1, 1], 0.2, 1.0)
    assert same(found, sums / merged / 3 * wanted)
    if then == "task_arithmetic":
        assert same(found, sum(full) / 3)


# --- transfer, PortLLM, composable -----------------------------------------------------------------


def test_transfer_pads_the_rows_of_tokens_with_zeros_and_nothing_else():
    method, (short,) = Transfer(), dense(4, 3, count=1)
    assert method.fits((4, 3), place(6, 3, vocabulary=True)) and not method.fits((4, 3), place(6, 3))
    assert not method.fits((4, 2), place(6, 3, vocabulary=True))
    assert not method.fits((7, 3), place(6, 3, vocabulary=True))
    merged = method.merge([short], [1.0], place(6, 3, vocabulary=True))
    assert merged.shape == (6, 3) and same(merged.dense()[:4], short.dense()) and not merged.dense()[4:].any()


def test_portllm_takes_the_same_shapes_only():
    assert PortLLM().fits((4, 3), place(4, 3)) and not PortLLM().fits((4, 3), place(6, 3, vocabulary=True))


def test_composable_sums_what_is_sparse_and_commutes():
    first, second = (d.top(4) for d in dense(6, 5, count=2))
    at = place(6, 5)
    merged, swapped = Composable().merge([first, second], [1, 1], at), Composable().merge([second, first], [1, 1], at)
    assert merged.is_sparse and len(merged.values) <= 8
    assert same(merged.dense(), first.dense() + second.dense()) and same(merged.dense(), swapped.dense())


def test_composable_keeps_the_k_that_moved_most():
    (delta,) = dense(6, 5, count=1)
    kept = Composable(density=0.2).merge([delta], [1.0], place(6, 5))
    assert kept.is_sparse and len(kept.values) == 6
    gone = delta.dense()[kept.dense() == 0].abs().max()
    assert kept.values.abs().min() > gone


# --- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: TIES(density=1.5),
        lambda: DARE(drop=1.0),
        lambda: DARE(then="lines"),
        lambda: DARE(then="tie"),
        lambda: LiNeS(then="transfer"),
        lambda: Breadcrumbs(beta=-0.1),
        lambda: TIES.from_dict({"density": "half"}),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(lt.LuthierError):
        make()
