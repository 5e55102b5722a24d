"""The laws of training together: whoever shares the batch, an adapter is trained as it would be alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import luthier as lt
from luthier import data, models
from luthier.core.adapters.control import tensors
from luthier.core.adapters.share import seeded
from luthier.core.contracts.component import find, names
from luthier.core.contracts.objective import At, Objective
from luthier.core.contracts.router import Routed
from luthier.core.errors import LuthierError
from luthier.core.sites.packing import packed
from luthier.training.prepare import prepare
from luthier.training.together import Batched, Pool, Row, Work
from support.architectures import ARCHITECTURES, decoding_forms
from support.objective_runs import batch_for, run_of

FORMS = decoding_forms()
OBJECTIVES = [name for name in names("objectives") if not find("objectives", name)().samples]
STEPS = 2
ALIKE = 1e-6
STEPPED = 1e-5
"""After steps of Adam, which divides by small moments: how far that takes rounding depends on the processor."""


def drawn(count: int, seed: int, longest: int = 14) -> list[Row]:
    """Rows of several lengths, with prompts of a third."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, longest, (count,), generator=draw).tolist()
    made = [torch.randint(3, 97, (length,), generator=draw).tolist() for length in lengths]
    return [Row(ids, [*[-100] * (len(ids) // 3), *ids[len(ids) // 3 + 1 :], -100]) for ids in made]


def mean(log_probs: list[torch.Tensor]) -> torch.Tensor:
    return -torch.cat(log_probs).mean()


def form_of(name: str, **settings: Any) -> lt.Form:
    chosen = find("forms", name)
    fields = chosen.__dataclass_fields__
    several = {f: ("a", "b") for f in ("tasks", "experts") if f in fields and isinstance(fields[f].default, tuple)}
    made = chosen(**(several if issubclass(chosen, Routed) and not chosen.by_task else {}) | settings)
    assert isinstance(made, lt.Form)
    return made


def perturb(model: Any, name: str) -> None:
    draw = torch.Generator().manual_seed(5)
    for p in tensors(model, name).values():
        if p.requires_grad:
            p.data += 0.05 * torch.randn(p.shape, generator=draw).to(p.dtype)


def alone(form: lt.Form, batches: list[list[Row]]) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and tensors of an adapter that is trained by a plain loop, packed as a run of its own is."""
    model = ARCHITECTURES["qwen2"].build()
    with seeded(torch.device("cpu"), 3):
        lt.attach(model, form)
        perturb(model, "default")
        params = [p for p in tensors(model).values() if p.requires_grad]
        optimizer = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.01)
        losses = []
        model.train()
        for rows in batches:
            width = max(len(row.tokens) for row in rows)
            fill = lambda values, blank: [*values, *[blank] * (width - len(values))]  # noqa: B023, E731
            ids = torch.tensor([fill(row.tokens, 0) for row in rows])
            mask = torch.tensor([fill([1] * len(row.tokens), 0) for row in rows])
            wanted = torch.tensor([fill(row.wanted(), -100) for row in rows])
            with packed(model), lt.prompt(model, [row.end() for row in rows]):
                logits = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
            found = logits.gather(-1, wanted.clamp(min=0)[..., None])[..., 0] * wanted.ne(-100)
            loss = mean([line[: len(row.tokens)] for line, row in zip(found, rows, strict=True)])
            losses.append(float(loss.detach()))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, 0.5)
            optimizer.step()
            optimizer.zero_grad()
    return losses, {key.partition(".")[2]: t.detach() for key, t in tensors(model).items()}


def beside(name: str, form: lt.Form, batches: list[list[Row]], others: dict[str, lt.Form], poison: str = ""):
    """The same in a pool with others, of which one has become NaN."""
    pool = Pool(ARCHITECTURES["qwen2"].build())
    for number, (key, other) in enumerate(others.items()):
        pool.add(key, other, seed=number)
        perturb(pool.model, key)
        if key == poison:
            for p in tensors(pool.model, key).values():
                p.data.fill_(torch.nan)
    with seeded(torch.device("cpu"), 3):
        lt.attach(pool.model, form, name=name)
        perturb(pool.model, name)
        pool.adopt(name)
    losses = []
    for step, rows in enumerate(batches):
        works = [Work(key, drawn(1 + step % 2, 50 + i, 20), mean) for i, key in enumerate(others)]
        works.insert(1, Work(name, rows, mean))
        works.append(Work(None, drawn(1, 7), mean))
        outcomes = pool.forward_backward(works)
        assert outcomes[-1].error is None
        for work, out in zip(works, outcomes, strict=True):
            assert (out.error is not None) == (work.name == poison), out.error
            if work.name not in (None, poison):
                assert work.name is not None
                pool.step(work.name, 1e-3, (0.9, 0.99), 1e-6, 0.01, 0.5)
        losses.append(outcomes[1].loss)
    return losses, {key.partition(".")[2]: t.detach() for key, t in tensors(pool.model, name).items()}


def same(one: tuple, two: tuple, tolerance: float = ALIKE) -> None:
    assert torch.allclose(torch.tensor(one[0]), torch.tensor(two[0]), rtol=tolerance, atol=1e-7)
    size = max(float(t.float().norm()) for t in two[1].values())
    apart = {key: float((one[1][key].float() - t.float()).norm()) / size for key, t in two[1].items()}
    assert max(apart.values()) <= tolerance, max(apart.items(), key=lambda each: each[1])


@pytest.mark.parametrize("name", FORMS)
def test_of_every_form(name):
    """Beside LoRAs of other ranks, one of them NaN, and one of the same form."""
    form, batches = form_of(name), [drawn(2, seed) for seed in range(STEPS)]
    others = {"low": lt.LoRA(rank=2), "poison": lt.LoRA(rank=4), "again": form}
    same(beside("own", form, batches, others, "poison"), alone(form, batches), STEPPED)


@pytest.mark.parametrize("name", ["lora", "dora", "wegeft"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_of_stacked_factors(name, dropout):
    """Adapters of one form on the same layers, of several ranks and places, have one product for each factor."""
    settings = {"dropout": dropout} if name != "dora" else {}
    form, batches = form_of(name, rank=5, **settings), [drawn(2, seed) for seed in range(STEPS)]
    others = {
        "low": form_of(name, rank=2, **settings), "poison": form_of(name, rank=4), "again": form_of(name, rank=9),
    }  # fmt: skip
    same(beside("own", form, batches, others, "poison"), alone(form, batches), STEPPED)


def test_a_prompt_that_labels_alone_tell_does_not_end_where_invocations_are_looked_for():
    """As in a plain pass with labels; a prompt that is told does, also beside one that is not."""
    tokens, form = [11, 12, 5, 6, 13, 14, 5, 6, 15, 16], lt.LoRA(rank=4, positions="from:5.6")
    ids, targets = torch.tensor([tokens]), [*[-100] * 4, *tokens[5:], -100]
    labels = torch.tensor([[*[-100] * 5, *tokens[5:]]])
    pool = Pool(ARCHITECTURES["qwen2"].build())
    pool.add("own", form)
    perturb(pool.model, "own")
    lt.use(pool.model, "own")
    plain = pool.model(input_ids=ids, labels=labels).loss.item()
    with lt.prompt(pool.model, 5):
        told = pool.model(input_ids=ids, labels=labels).loss.item()
    assert told != pytest.approx(plain, rel=1e-4)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    works = [Work("own", [Row(tokens, targets)], mean5), Batched("own", batch, lt.SFT())]
    works.append(Work("own", [Row(tokens, targets, prompt=5)], mean5))
    losses = [out.loss for out in pool.forward_backward(works)]
    assert losses == pytest.approx([plain, plain, told], rel=1e-6)


def mean5(log_probs: list[torch.Tensor]) -> torch.Tensor:
    return -log_probs[0][4:-1].mean()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_of_every_objective(name, tmp_path):
    """Loss, figures and gradients of a batch beside other adapters, one of them under another objective."""
    chosen = find("objectives", name)()
    assert isinstance(chosen, Objective)
    if not chosen.serves("causal-lm"):
        with pytest.raises(LuthierError, match="causal language model"):
            Pool(batch_for(chosen, tmp_path)[0])
        return
    run, form = run_of(tmp_path, chosen, name)
    prepared = prepare(run)
    loaded = models.load(run.model, task=prepared.task, labels=prepared.examples.labels)
    if prepared.task != "causal-lm":
        with pytest.raises(LuthierError, match="causal language model"):
            Pool(loaded.model)
        return
    single = copy.deepcopy(loaded.model)
    rows = data.collator_for(prepared.task, prepared.processor)(list(prepared.train[:6]))
    rows.pop("rows")
    pool = Pool(loaded.model)
    for number, key in enumerate(("before", "own", "behind")):
        pool.add(key, form if key == "own" else lt.LoRA(rank=2), seed=number)
        perturb(pool.model, key)
    with seeded(torch.device("cpu"), 1):
        lt.attach(single, form, name="own")
        perturb(single, "own")
        torch.manual_seed(0)
        given = chosen.inputs(rows, At(5, 10, True, lambda given: single(**given).logits.detach()))
        single.eval()  # no dropout is drawn here, by any
        with packed(single):
            expected, figures = Batched("own", given, chosen).loss(single)
        expected.backward()
    ids = {key: rows[key] for key in ("input_ids", "attention_mask", "labels")}
    works = [Work("before", drawn(2, 3, 40), mean), Batched("own", given, chosen), Batched("behind", ids, lt.SFT())]
    outcomes = pool.forward_backward(works)
    assert [out.error for out in outcomes] == [None] * 3
    assert outcomes[1].loss == pytest.approx(float(expected.detach()), rel=5e-6, abs=1e-7)
    for key, values in figures.items():
        assert torch.allclose(outcomes[1].figures[key].double(), values.double(), rtol=1e-4, atol=1e-5)
    grads = [{k: p.grad for k, p in tensors(m, "own").items() if p.grad is not None} for m in (pool.model, single)]
    size = max(float(g.norm()) for g in grads[1].values())
    assert grads[0].keys() == grads[1].keys()
    assert all(float((grads[0][key] - g).norm()) <= 5e-6 * size for key, g in grads[1].items())
