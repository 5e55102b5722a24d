"""Streamed principal components against the exact ones, in float64, on spectra as activations have them."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.core.errors import LuthierError
from luthier.methods.statistics.pca import PCA

WIDTH, ROWS = 96, 4000


def data(rank: int = WIDTH, decay: float = 1.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Rows whose j-th direction has standard deviation j^-decay, far from the origin, one direction towering."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    turn = torch.linalg.qr(draw(WIDTH, WIDTH)).Q[:rank]
    sizes = torch.arange(1, rank + 1, dtype=torch.float64) ** -decay
    return ((draw(ROWS, rank) * sizes) @ turn + 5 * draw(WIDTH)).to(dtype)


def exact(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions [d, d] and their shares of the variance, in falling order."""
    values, vectors = torch.linalg.eigh(torch.cov(x.double().T, correction=0))
    return vectors.flip(1).T, values.flip(0) / values.sum()


def streamed(pca: PCA, x: torch.Tensor, batch: int) -> dict[str, torch.Tensor]:
    held = pca.begin()
    for rows in x.split(batch):
        held = pca.update(held, rows, None)
    return pca.result(held)


def captured(directions: torch.Tensor, x: torch.Tensor) -> float:
    """Share of the variance of x inside the span of orthonormal rows."""
    centred = x.double() - x.double().mean(0)
    return float((centred @ directions.double().T).square().sum() / centred.square().sum())


@pytest.mark.parametrize("batch", [1, 7, 100, 1500, ROWS])
def test_all_is_exact_where_the_data_span_no_more_than_is_kept(batch):
    x = data(rank=20)
    found = streamed(PCA(10, 1.0), x, batch)
    directions, shares = exact(x)
    assert torch.allclose(found["variance"], shares[:10], rtol=1e-9)
    assert torch.allclose((found["pca"].double() * directions[:10]).sum(1).abs(), torch.ones(10).double(), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [3, 60, 1000])
@pytest.mark.parametrize("decay", [0.3, 1.0])
def test_what_is_cut_off_on_the_way_costs_little(batch, decay, dtype):
    x = data(decay=decay, dtype=dtype)
    found = streamed(PCA(12, 1.0), x, batch)
    directions, shares = exact(x)
    assert captured(found["pca"], x) > 0.99 * float(shares[:12].sum())
    assert torch.allclose(found["variance"], shares[:12], rtol=0.1)
    if decay == 1.0:
        assert torch.linalg.svdvals(found["pca"].double() @ directions[:6].T).min() > 0.999


def test_the_rows_are_orthonormal_their_signs_are_fixed_and_shares_fall():
    x = data().float()
    found = streamed(PCA(16), x, 500)
    assert found["pca"].dtype == torch.float32 and found["pca"].shape == (16, WIDTH)
    assert torch.allclose(found["pca"] @ found["pca"].T, torch.eye(16), atol=1e-5)
    assert (found["pca"].amax(1) >= -found["pca"].amin(1)).all()
    assert (found["variance"].diff() <= 0).all()
    again = streamed(PCA(16), x, 500)
    assert all(torch.equal(found[key], again[key]) for key in found)


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    streamed(PCA(4), data(), 1000)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_direction_that_only_comes_late_is_found():
    x = data(decay=2.0).float()
    late = torch.zeros(500, WIDTH)
    late[:, 7] = 40 * torch.randn(500)
    found = streamed(PCA(4, 1.0), torch.cat([x, late]), 500)
    directions, shares = exact(torch.cat([x, late]))
    assert abs(float(found["pca"][0].double() @ directions[0])) > 1 - 1e-6
    assert found["variance"][0] == pytest.approx(float(shares[0]), rel=1e-5)


def test_only_rows_that_count_are_read():
    x = data().float()[:600].view(6, 100, WIDTH)
    mask = torch.rand(6, 100) < 0.6
    pca = PCA(8)
    found = pca.result(pca.update(pca.begin(), x, mask))
    plain = streamed(pca, x[mask], 600)
    assert all(torch.equal(found[key], plain[key]) for key in found)


def test_fewer_rows_than_components_still_give_orthonormal_rows():
    x = data().float()[:5]
    found = streamed(PCA(8), x, 2)
    assert torch.allclose(found["pca"] @ found["pca"].T, torch.eye(8), atol=1e-5)
    assert found["variance"].sum() == pytest.approx(1) and found["variance"][4:].max() < 1e-6
    narrow = streamed(PCA(8), x[:, :3], 2)
    assert narrow["pca"].shape == (3, 3)
    flat = streamed(PCA(2), torch.ones(50, 4), 10)
    assert flat["variance"].tolist() == [0, 0]


def test_no_batch_outlives_its_update():
    pca, x = PCA(4), data().float()
    for held in (pca.update(None, x, None), pca.update(pca.update(None, x, None), x[:3], None)):
        kept = [tensor for tensor in vars(held).values() if isinstance(tensor, torch.Tensor)]
        assert sum(tensor.untyped_storage().nbytes() for tensor in kept) < 4 * WIDTH * (pca.kept + 8)


def settles(pca: PCA, x: torch.Tensor, batch: int) -> int:
    """Rows read until it is settled; -1 if it never is."""
    held = pca.begin()
    for count, rows in enumerate(x.split(batch), 1):
        held = pca.update(held, rows, None)
        if pca.done(held):
            return count * batch
    return -1


def test_it_settles_once_directions_stand_still():
    x = data(decay=1.0).float()
    rows = settles(PCA(4, 0.99), x, 250)
    assert 250 < rows < ROWS
    assert settles(PCA(4, 0.9999), x, 250) in (-1, *range(rows, ROWS + 1))
    assert settles(PCA(4, 1.0), x, 250) == -1


def test_small_batches_count_together_so_that_they_do_not_look_settled():
    assert settles(PCA(4, 0.99), data().float(), 1) >= 2 * PCA(4).kept


def test_two_askers_get_one_statistic():
    assert PCA(4, 0.99).join(PCA(9, 0.99)) == PCA(9, 0.99)
    with pytest.raises(LuthierError, match="give both one tau"):
        PCA(4, 0.99).join(PCA(9, 0.9))


@pytest.mark.parametrize(("values", "told"), [((0,), "at least 1"), ((4, 0.0), "above 0"), ((4, 1.5), "at most 1")])
def test_what_makes_no_sense_is_refused(values, told):
    with pytest.raises(lt.LuthierError, match=told):
        PCA(*values)


def test_token_ids_have_no_components():
    with pytest.raises(lt.LuthierError, match="token ids"):
        PCA(2).update(None, torch.ones(2, 3, dtype=torch.long), None)
