"""The laws of objectives over preferences, over the registry, and with every form of the registry."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier import data
from luthier.core.adapters.call import Call
from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import Form
from luthier.core.contracts.objective import REFERENCE, Objective, Rows, labels_of
from luthier.core.errors import LuthierError
from luthier.core.sites.probe import eval_mode
from luthier.data import Collator
from luthier.methods.log_probs import log_probs, of_logits
from luthier.methods.objectives.cpo import CPO
from luthier.methods.objectives.dpo import DPO
from luthier.methods.objectives.orpo import ORPO
from luthier.methods.objectives.simpo import SimPO
from support.architectures import ARCHITECTURES, decoding_forms
from support.tiny import pairs, tokenizer, write_rows

OBJECTIVES = [name for name in names("objectives") if "pairs" in find("objectives", name, Objective).reads]
WRITTEN = [name for name in OBJECTIVES if find("objectives", name, Objective).task is None]
"""Those that train a language model."""
NOISELESS = [DPO(), DPO(variant="hinge"), DPO(variant="ipo"), DPO(smoothing=0.2), CPO(), SimPO(), ORPO(lam=0.5)]


def objective(name: str) -> Objective:
    return find("objectives", name, Objective)()


def build(dtype: torch.dtype = torch.float64, seed: int = 0):
    return ARCHITECTURES["qwen2"].build(seed, dtype=dtype)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Features of an objective, shaped by it, from rows."""
    folder = tmp_path_factory.mktemp("pairs")

    def features(chosen: Objective, rows: list[dict] | None = None) -> list[dict]:
        source = write_rows(folder / "rows.jsonl", pairs(6) if rows is None else rows)
        examples = data.load(source, preferences=True, task=chosen.task, columns=chosen.columns)
        made = data.encode_all(examples, tokenizer(), max_length=128)
        return chosen.rows(Rows(examples, made, lambda other: [], tokenizer(), 128, 0))

    return features


def batch(features: list[dict], side: str = "right", multiple: int | None = None) -> dict:
    made = Collator(0, side, multiple)(features)  # type: ignore[arg-type]
    return {key: value for key, value in made.items() if key != "rows"}


def adapted(form: Form | None = None, dtype: torch.dtype = torch.float64):
    """A model with the form on it, away from its start."""
    model = lt.attach(build(dtype), form or lt.LoRA(rank=2))
    draw = torch.Generator().manual_seed(5)
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
    return model


def loss_of(chosen: Objective, model, given: dict) -> torch.Tensor:
    means = chosen.loss(model, given)
    counts = chosen.token_counts(given, labels_of(given, True))
    return (means * chosen.part_weights(counts, {}).to(means.dtype)).sum()


def slopes(loss: torch.Tensor, model) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss, list(lt.trainable(model).values()), allow_unused=True)
    return [torch.zeros(()) if slope is None else slope for slope in found]


@pytest.mark.parametrize("form", decoding_forms())
@pytest.mark.parametrize("name", WRITTEN)
def test_every_form_trains_under_every_objective(read, name, form):
    """A finite loss with a gradient for the adapter, measured from the very model with its adapter off."""
    chosen = objective(name)
    model = adapted(find("forms", form, Form)(), torch.float32)
    given = batch(read(chosen))
    loss, figures = chosen.loss_and_figures(model, given)
    loss = loss.sum()
    assert torch.isfinite(loss) and all(torch.isfinite(values).all() for values in figures.values())
    assert set(figures) == {each for together in chosen.curves for each in together}
    assert sum(float(slope.abs().sum()) for slope in slopes(loss, model)) > 0
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", [name for name in WRITTEN if objective(name).compares])
def test_a_known_reference_is_the_model_with_its_adapter_off(read, name):
    """The numbers that are computed once are those that a step would compute, and no adapter is left off."""
    chosen, model = objective(name), adapted()
    features = read(chosen)
    known, base = batch(features), build()
    plain = {key: known[key] for key in ("input_ids", "attention_mask", "labels")}
    with eval_mode(base):
        told = log_probs(base, plain)[0]
    before = model(**plain).logits
    each, once = chosen.loss(model, known), chosen.loss(model, known | {REFERENCE: told})
    torch.testing.assert_close(each, once, rtol=1e-12, atol=1e-12)
    assert torch.equal(model(**plain).logits, before)


@pytest.mark.parametrize("chosen", NOISELESS, ids=str)
def test_padding_and_the_division_into_batches_do_not_matter(read, chosen):
    model, features = adapted(), read(chosen)
    whole = chosen.loss(model, batch(features))
    for given in (batch(features, "left"), batch(features, "right", 16)):
        torch.testing.assert_close(chosen.loss(model, given), whole, rtol=1e-6, atol=1e-6)  # rotary angles: float32
    parts = [batch(features[:2]), batch(features[2:])]
    counts = torch.stack([chosen.token_counts(each, labels_of(each, True)) for each in parts]).double()
    losses = torch.stack([chosen.loss(model, each).reshape(-1) for each in parts])
    torch.testing.assert_close((losses * counts).sum(0) / counts.sum(0), whole.reshape(-1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chosen", [DPO(), DPO(variant="hinge"), DPO(smoothing=0.3), CPO(alpha=0.0), SimPO()], ids=str)
def test_of_two_equal_answers_nothing_is_learned(read, chosen):
    """The gradient is 0: no data hold such a row, as it is refused, and the equations say so."""
    features = [feature | {"also": [{k: v for k, v in feature.items() if k != "also"}]} for feature in read(chosen)]
    model = adapted()
    found = slopes(loss_of(chosen, model, batch(features)), model)
    assert all(float(slope.abs().max()) < 1e-12 for slope in found)


def test_of_two_equal_answers_orpo_fine_tunes(read):
    chosen, model = ORPO(lam=0.7), adapted()
    features = [feature | {"also": [{k: v for k, v in feature.items() if k != "also"}]} for feature in read(chosen)]
    given = batch(features)
    first = {key: value[0::2] for key, value in given.items()}
    tuned = -of_logits(model(**first).logits, first["labels"]).sum() / first["labels"][:, 1:].ne(-100).sum()
    for ours, theirs in zip(slopes(loss_of(chosen, model, given), model), slopes(tuned, model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)  # norms are taken in float32


def test_without_a_scale_there_is_nothing_to_win(read):
    """β = 0: the sigmoid is log 2 whatever the model, and its gradient 0; SimPO keeps its margin."""
    model = adapted()
    for chosen, value in ((DPO(beta=0.0), 0.0), (CPO(beta=0.0, alpha=0.0), 0.0), (SimPO(beta=0.0, gamma=1.0), -1.0)):
        loss = loss_of(chosen, model, batch(read(chosen)))
        wanted = torch.nn.functional.softplus(torch.tensor(-value, dtype=torch.float64))
        torch.testing.assert_close(loss.double(), wanted, rtol=1e-12, atol=1e-12)
        assert all(float(slope.abs().max()) == 0 for slope in slopes(loss, model))


def test_both_answers_get_the_edits_of_their_prompt(read, monkeypatch):
    """Positions end with the prompt: a chosen and a rejected answer are read behind the same edits."""
    found = []
    locate = Call.locate
    monkeypatch.setattr(Call, "locate", lambda self, positions: found.append(locate(self, positions)) or found[-1])
    for name in WRITTEN:
        chosen = objective(name)
        given, model = batch(read(chosen)), adapted(lt.LoReFT(positions="f2+l2"))
        found.clear()
        chosen.loss(model, given)
        starts = given["labels"].ne(-100).long().argmax(1)
        for index, keep in (each for each in found if each is not None):
            edited = torch.where(keep, index, -1)
            start = starts if len(edited) == len(starts) else starts[0::2]
            assert bool((edited < start[:, None]).all()) and bool((edited >= 0).any()), name
            assert len(edited) < len(starts) or torch.equal(edited[0::2], edited[1::2])
        assert found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probs_in_chunks_are_those_of_whole_logits(monkeypatch, dtype):
    """A large vocabulary never meets a whole batch of logits; values and gradients stay."""
    from luthier.methods.objectives import _cross_entropy

    monkeypatch.setattr(_cross_entropy, "VOCABULARY", 0)
    monkeypatch.setitem(_cross_entropy.CHUNK, "cpu", 3)
    monkeypatch.setattr(_cross_entropy, "FEW", 0)
    model = adapted(lt.LoRA(rank=2), dtype)
    ids = ARCHITECTURES["qwen2"].inputs(3, 11)["input_ids"]
    labels = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.4, -100)
    weights = torch.tensor([0.3, -1.0, 2.0])
    ours, counts = log_probs(model, {"input_ids": ids, "labels": labels})
    theirs = of_logits(model(input_ids=ids, labels=labels).logits, labels)
    rough = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(ours, theirs, rtol=rough, atol=rough)
    assert counts.tolist() == labels[:, 1:].ne(-100).sum(1).tolist()
    pairs_ = zip(slopes((ours * weights).sum(), model), slopes((theirs * weights).sum(), model), strict=True)
    for mine, whole in pairs_:
        torch.testing.assert_close(mine, whole, rtol=10 * rough, atol=rough * float(whole.abs().max()))


def test_settings_that_would_be_ignored_are_refused():
    for wrong in ({"variant": "hinge", "smoothing": 0.1}, {"variant": "ipo", "beta": 0.0}, {"smoothing": 0.6}):
        with pytest.raises(LuthierError):
            DPO.from_dict(wrong)
