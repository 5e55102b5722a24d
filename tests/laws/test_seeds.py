"""Every random draw follows the seed of the run: one seed draws the same, another one something else."""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import set_seed

import luthier as lt
from luthier import data
from luthier.core.adapters.control import tensors
from luthier.core.adapters.training_plan import training_plan
from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import Form
from luthier.core.contracts.init import Init
from luthier.core.contracts.objective import At, Objective, Rows
from luthier.core.contracts.selection import Pool, Selection
from luthier.core.contracts.statistic import joined
from luthier.core.contracts.update import Update
from luthier.measuring.calibration import Calibration, sample
from luthier.training import Run, Training, train
from support.architectures import ARCHITECTURES, base_of, decoding_forms
from support.calibrated import build, measured
from support.sampled import batch_of, rows_of
from support.tiny import TEMPLATE, sums, tokenizer, write_rows

RANDOM = ("uniform", "normal", "rand", "bernoulli", "multinomial", "dropout", "exponential")
"""Parts of the names of torch's operations that draw."""
FITTING = (lt.LoRA(rank=2), lt.LoRAXS(rank=2))


class _Watch(TorchDispatchMode):
    """Notes whether torch drew anything."""

    def __init__(self) -> None:
        super().__init__()
        self.drew = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.drew |= any(word in func.name() for word in RANDOM)
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(monkeypatch):
    """[whether torch, Python or numpy drew anything]."""
    seen: list[bool] = [False]

    class Drawing(random.Random):
        def __init__(self, *seed) -> None:
            seen[0] = True
            super().__init__(*seed)

    made = np.random.default_rng
    with monkeypatch.context() as patch, _Watch() as watch:
        patch.setattr(random, "Random", Drawing)
        patch.setattr(np.random, "default_rng", lambda *seed: seen.__setitem__(0, True) or made(*seed))
        yield seen
    seen[0] |= watch.drew


def same(left, right) -> bool:
    """Equality of lists, dictionaries and tensors."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def law(draw, monkeypatch) -> None:
    """`draw(seed)` follows the seed, or draws nothing."""
    with watched(monkeypatch) as seen:
        first = draw(0)
    assert same(draw(0), first), "one seed drew twice apart"
    assert same(draw(1), first) != seen[0], "two seeds drew the same" if seen[0] else "it changes and draws nothing"


@pytest.mark.parametrize("name", names("forms"))
def test_forms(name, monkeypatch):
    cls = find("forms", name, Form)
    model = build() if name in decoding_forms() else base_of(name).build()
    where = cls.where if name != "bitfit" else "params(*norm.weight)"

    def draw(seed):
        set_seed(seed)
        lt.attach(model, cls(), where, check=False)
        found = {key: tensor.detach().clone() for key, tensor in tensors(model).items()}
        lt.detach(model)
        return found

    law(draw, monkeypatch)


def started(init: Init) -> Form:
    for form in FITTING:
        try:
            init.statistics(form)
        except lt.LuthierError:
            continue
        return form
    raise AssertionError(f"{init.name()} starts none of them")


@pytest.mark.parametrize("name", names("inits"))
def test_inits(name, monkeypatch):
    cls, model = find("inits", name, Init), build()
    init = cls.from_dict({"niter": 1} if "niter" in cls.settings() else {})
    form = started(init)
    (site, *_) = lt.select(model, "q_proj")
    found = measured(model, *joined(list(init.statistics(form)))).get(site.path, {})
    given = {**found, "weight": model.get_submodule(site.path).weight.detach()}

    def draw(seed):
        set_seed(seed)
        return init.factors(form, site, given)

    law(draw, monkeypatch)


@pytest.mark.parametrize("name", names("updates"))
def test_updates(name, monkeypatch):
    cls = find("updates", name, Update)
    quick = {"interval": 2, "search": 0.4, "gamma": 1, "reinit": 1}
    update = cls.from_dict({key: value for key, value in quick.items() if key in cls.settings()})
    for form, where in (
        (lt.Full(), "params(*.layers.*.weight)"),
        (lt.LoRA(rank=2), "q_proj"),
        (lt.MHR(rank=2), "q_proj"),
    ):
        try:
            update.check_form(form, lt.select(build(), where))
            break
        except lt.LuthierError:
            continue
    torch.manual_seed(3)
    model = lt.attach(build(), form, where)

    def draw(seed):
        set_seed(9)  # what is drawn comes from the course alone
        plan = training_plan(model, 40, seed=seed)
        steps = [[place.name for place in update.active(plan, step)] for step in range(40)]
        values = {key: tensor.detach().clone() for key, tensor in update.values(plan, 0).items()}
        return [steps, {key: t for key, t in values.items() if t.dim() > 1}]

    law(draw, monkeypatch)


OF = {
    "prompts": lambda i, row: row,
    "answers": lambda i, row: row | {"task": "ab"[i % 2], "rationale": f"{i} is odd", "hint": f"say {i}"},
    "pairs": lambda i, row: {"prompt": row["prompt"], "chosen": row["completion"], "rejected": "none of it"},
    "judged": lambda i, row: row | {"label": i % 3 > 0},
}
"""A row of each kind that objectives read."""


@pytest.mark.parametrize(
    "name", [n for n in names("objectives") if find("objectives", n, Objective)().serves("causal-lm")]
)
def test_objectives(name, monkeypatch, tmp_path):
    """The rows that it shapes follow the seed that it is told, noise in training that of the process."""
    cls, words = find("objectives", name, Objective), tokenizer(TEMPLATE)
    told = [OF[cls.reads[0]](i, row) for i, row in enumerate(sums(12))]
    judges, file = not {"answers", "prompts"} & set(cls.reads), write_rows(tmp_path / "rows.jsonl", told)
    examples = data.load(file, columns=cls.columns, preferences=judges)

    def encode(part):
        return data.encode_all(part, words, max_length=200)

    objective = cls()
    form = lt.LoRA(rank=2)
    try:
        objective.check_form(form)
    except lt.LuthierError:
        form = lt.MeteoRA(experts=("a", "b"), rank=2, top=1)
    task = {"tasks": 1} if isinstance(form, lt.MeteoRA) else {}
    torch.manual_seed(3)
    model = lt.attach(build(), form, "q_proj", check=False).train()

    sampled = batch_of(rows_of(objective), objective, model) if objective.reward_specs() else None

    def teacher(batch):
        with torch.no_grad():
            return model(input_ids=batch["input_ids"]).logits

    def draw(seed):
        features = [feature | task for feature in encode(examples)]
        found = objective.rows(Rows(examples, features, encode, words, 200, seed, ("a", "b")))
        batch = data.collator_for("causal-lm", words)(found)
        rows = batch.pop("rows")
        set_seed(seed)
        given = objective.inputs(dict(batch), At(9, 10, training=True, teacher=teacher))
        given = given if sampled is None else sampled
        return rows, batch["input_ids"], objective.loss(model, given).detach()

    law(draw, monkeypatch)


@pytest.mark.parametrize("name", names("selections"))
def test_selections(name, monkeypatch, tmp_path):
    selection = find("selections", name, Selection)()
    rows = [{"prompt": f"{'sea law ship'[i % 5 :]} {i}", "completion": str(i)} for i in range(20)]
    files = [write_rows(tmp_path / f"{i}.jsonl", part) for i, part in enumerate((rows[:15], rows[15:]))]
    pool, target = map(data.load, files)

    def draw(seed):
        set_seed(9)  # what is drawn comes from the pool's seed alone
        given, found = Pool(pool, target, seed), []
        for ask in (lambda: selection.score(given).tolist(), lambda: selection.nearest(target.rows, given, 3)):
            try:
                found.append(ask())
            except lt.LuthierError as error:
                found.append(str(error))
        return found

    draw(0)  # libraries that load now draw as they do
    law(draw, monkeypatch)


def test_the_rows_that_are_measured(monkeypatch):
    features = [{"row": i} for i in range(50)]
    law(lambda seed: sample(features, Calibration(samples=5).seeded(seed)), monkeypatch)
    assert Calibration(seed=3).seeded(7).seed == 3 and Calibration().seeded(7).seed == 7


def test_a_run_hands_its_seed_on(llama, additions, tmp_path, monkeypatch):
    from luthier.measuring import allocation

    seen, calibrate = [], allocation.calibrate
    watch = lambda m, f, c, s, w, settings, **k: seen.append(settings.seed) or calibrate(m, f, c, s, w, settings, **k)  # noqa: E731
    monkeypatch.setattr(allocation, "calibrate", watch)
    run = Run(
        llama, additions, lt.S2FT(ratio=0.2), training=Training(steps=1, eval_fraction=0), out=str(tmp_path / "0")
    )
    found = []
    for seed in (0, 1, 0):
        training = replace(run.training, seed=seed)
        result = train(replace(run, training=training, out=str(tmp_path / str(len(found)))), progress=False)
        found.append({k: t.clone() for k, t in tensors(result.model).items() if k.endswith("index")})
    assert same(found[0], found[2]) and not same(found[0], found[1])
    assert seen == [0, 1, 0]


def test_layers_of_a_block_still_choose_the_same_heads():
    torch.manual_seed(4)
    form = lt.S2FT(ratio=0.5, units=2, side="output")
    model = lt.attach(ARCHITECTURES["llama"].build(), form, "k_proj, v_proj", check=False)
    index = {key.split(".layers.")[1]: t for key, t in tensors(model).items() if key.endswith("index")}
    for layer in range(3):
        assert index[f"{layer}.self_attn.k_proj.index"].equal(index[f"{layer}.self_attn.v_proj.index"])
