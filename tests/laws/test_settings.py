"""Every setting of every component acts, in each of the component's modes, or is refused: none is ignored."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import MISSING, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn import functional
from transformers import set_seed

import luthier as lt
from luthier import data
from luthier.combining.parameter_refs import parameter_refs
from luthier.core.adapters.control import tensors
from luthier.core.adapters.optimiser import optimiser
from luthier.core.adapters.training_plan import training_plan
from luthier.core.contracts.combination import Place
from luthier.core.contracts.component import Component, axes, find, names
from luthier.core.contracts.examination import Change, Pair
from luthier.core.contracts.form import Form
from luthier.core.contracts.meta import MaskMeta, Shots
from luthier.core.contracts.objective import At, Rows, labels_of
from luthier.core.contracts.ranks import Budget
from luthier.core.contracts.router import RoutedBatch, names_of
from luthier.core.contracts.selection import Pool, Selection
from luthier.core.contracts.site import Site
from luthier.core.numerics.delta import Delta
from luthier.core.sites.scope import Scope
from luthier.examining.check.verdict import judged
from support.architectures import ARCHITECTURES, decoding_forms
from support.asked import with_answers
from support.calibrated import batches, build, measured
from support.gated import subject_of
from support.objective_runs import batch_for
from support.pyreft_recorded import CASES, FOLDER, base
from support.sampled import batch_of, rows_of, scored
from support.shipped import byte_level
from support.tiny import TEMPLATE, sums, tokenizer, write_rows

WORDS: dict[str, tuple[Any, ...]] = {
    "positions": ("f2", "f1,l2"),
    "share": ("all", "type"),
    "then": ("task_arithmetic", "ties"),
    "token": ("q",),
    "tool": ("add",),
    "tasks": (("a", "b"),),
    "types": (("a", "b"),),
    "experts": (("a", "b"), ("a", "b", "c", "d")),
    "weights": ((0.5,), (0.5, 2.0)),
    "source": (),
    "reward": (("number",), ("number", "regex:a")),
    "transforms": ("identity", "reverse,json"),
}
"""Values of settings that are words: by the setting's name."""
WHERE = {
    "affine": "q_proj, down_proj",
    "embedding": "embed_tokens",
    "stream": "stream",
    "input": "input(q_proj)",
    "cache": "attention",
    "param": "params(*_proj.weight)",
}
BIASES = "params(*.bias)"
LOOKED = (0, 1, 2, 3, 19, 20, 21, 39, 40, 42, 200, 399, 400, 401, 402)
"""Steps at which the plan of an update is looked at."""
SMALL = {"lora_rank": 1, "every": 4, "accumulate": 2, "narrowest": 4, "threshold": 0.05}
SMALL |= {"clusters": 2, "worlds": 2, "games": 2, "rounds": 3}
"""Settings whose defaults are so large that a tiny model or a short run knows no other ones."""


def modes(cls: type[Component]) -> Iterator[dict[str, Any]]:
    """The defaults, and the defaults with each choice of a setting that is one of few."""
    small = {key: value for key, value in SMALL.items() if key in cls.settings()}
    yield small
    for key, (hint, field) in cls.settings().items():
        choices = [c for option in (hint, *typing.get_args(hint)) for c in _choices(option)]
        yield from ({key: choice} for choice in choices if choice != field.default)
        if type(None) in typing.get_args(hint) and field.default is None:
            yield from ({key: value} for value in itertools.islice(values(key, hint, None), 1))


def _choices(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    return (True, False) if hint is bool else ()


def values(key: str, hint: Any, now: Any) -> Iterator[Any]:
    """Other values of a setting, some of which may be out of range."""
    kinds = (hint, *typing.get_args(hint))
    if key in WORDS:
        yield from (value for value in WORDS[key] if value != now)
    elif choices := [c for option in kinds for c in _choices(option)]:
        yield from (choice for choice in choices if choice != now)
    elif int in kinds:
        yield from (value for value in ((now or 2) + 1, (now or 2) - 1, 2 * (now or 2), 1) if value != now)
    elif float in kinds:
        yield from (0.5 * (now or 1.0), 2 * (now or 0.2), 0.3, (now or 0.9) - 0.05)
    if type(None) in kinds and now is not None:
        yield None


def same(left: Any, right: Any) -> bool:
    """Equality of nested lists, dictionaries, tensors and arrays."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.shape == right.shape and torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return np.array_equal(left, right)
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def outcome(cls: type[Component], settings: dict[str, Any], result: Callable[[Any], Any]) -> Any:
    """What a component does with these settings: a refusal in use is something done; None where none can be made."""
    try:
        made = cls.from_dict(settings)
    except lt.LuthierError:
        return None
    try:
        return result(made)
    except lt.LuthierError as error:
        return f"refused: {error}"


def ignored(cls: type[Component], result: Callable[[Any], Any]) -> list[str]:
    """The settings that were accepted and changed nothing, each with the mode that it was in."""
    found, known = [], cache(lambda key: outcome(cls, dict(key), result))
    for mode in modes(cls):
        before = known(tuple(mode.items()))
        refused = before is None or (isinstance(before, str) and before.startswith("refused: "))
        for key, (hint, field) in () if refused else cls.settings().items():
            default = field.default_factory() if field.default is MISSING else field.default
            if key in mode:
                continue
            after = (known((*mode.items(), (key, value))) for value in values(key, hint, default))
            accepted = (same(before, each) for each in after if each is not None)  # no more than it takes
            if next(accepted, False) and all(accepted):
                found.append(f"{cls.name()}.{key} where {mode or 'all else is as it is'}")
    return found


# --- what the components of each axis do ------------------------------------------------------------


def _form(kind: str, name: str) -> Callable[[Form], Any]:
    tried = ARCHITECTURES["qwen2" if name in decoding_forms() else "vit"]  # whole rows are for encoders
    model, given = tried.build(), tried.inputs(2, 9)

    def result(form: Form) -> Any:
        set_seed(0)
        where = BIASES if kind == "param" and form.where == BIASES else WHERE[kind]
        if form.sees:
            where = form.where if kind == "stream" else "fc1"
        lt.attach(model, form, where, check=False)
        try:
            start = {key: tensor.detach().clone() for key, tensor in tensors(model).items()}
            draw = torch.Generator().manual_seed(1)
            for tensor in tensors(model).values():  # frozen experts too, as if they came from somewhere
                if tensor.is_floating_point():
                    tensor.data += 0.1 * torch.randn(tensor.shape, generator=draw)
            told = {"tasks": [form_names[-1]] * 2} if (form_names := names_of(form)) else {}
            with torch.no_grad():
                outputs = [model(**given, **told).logits]
                model.train()
                set_seed(2)
                with lt.watched(model) as routes:
                    outputs.append(model(**given, **told).logits)
            if isinstance(form, lt.Routed):
                outputs.append(form.balance([route.logits for route in routes], RoutedBatch()))
            return start, list(lt.trainable(model)), outputs
        finally:
            model.eval()
            lt.detach(model)

    return result


def _update() -> Callable[[Any], Any]:
    @cache
    def adapted(form: Form, where: str) -> torch.nn.Module:
        torch.manual_seed(3)
        return lt.attach(build(), form, where, check=False)

    def result(update: Any) -> Any:
        for form, where in (
            (lt.Full(), "params(*.weight)"),
            (lt.LoRA(rank=2), "q_proj, down_proj"),
            (lt.MHR(rank=2, skills=2), "q_proj"),
            (lt.Sparse(density=0.1), "q_proj"),
            (lt.DSEE(rank=2, prunable=True), "q_proj"),
        ):
            try:
                update.check_form(form, lt.select(adapted(form, where), where))
            except lt.LuthierError as error:
                refused = error
                continue
            model = deepcopy(adapted(form, where))
            torch.manual_seed(3)
            course = training_plan(model, 800)
            plan = [[place.name for place in update.active(course, step)] for step in LOOKED]
            chosen = [update.entries(course, step) is None for step in LOOKED] if update.sparse else []
            plan += [[update.probes(course, step), len(update.watches(course, step))] for step in LOOKED]
            optimizer = optimiser(model, update, lr=1e-2, steps=8)
            for given in fed:
                model(**given).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            return plan, chosen, {key: t.detach().clone() for key, t in tensors(model).items()}
        raise refused

    fed = [batches(1, seed=step)[0] for step in range(7)]
    return result


def _init() -> Callable[[Any], Any]:
    model = build()
    (site, *_) = lt.select(model, "q_proj")
    weight = model.get_submodule(site.path).weight.detach()

    def result(init: Any) -> Any:
        for form in (lt.LoRA(rank=2), lt.LoRAXS(rank=2)):
            try:
                statistics = init.statistics(form)
            except lt.LuthierError as error:
                refused = error
                continue
            set_seed(0)
            found = measured(model, *statistics, count=4, where="q_proj").get(site.path, {}) if statistics else {}
            return init.factors(form, site, {**found, "weight": weight})
        raise refused

    return result


def _ranks() -> Callable[[Any], Any]:
    model = build()
    sites = lt.select(model, "all-linear")

    def result(ranks: Any) -> Any:
        form = lt.LoRA(rank=3)
        statistics = ranks.statistics(form)
        stats = measured(model, *statistics, count=10) if statistics else {}
        return ranks.allocate(sites, stats, Budget(form)), ranks.evidence(sites, stats)

    return result


def _meta() -> Callable[[Any], Any]:
    def loss(params: Any, rows: Any) -> torch.Tensor:
        return ((params["w"] - rows) ** 4).sum()

    def result(method: Any) -> Any:
        if isinstance(method, MaskMeta):
            return _masks(method)
        params = {"w": torch.ones(3)}
        params |= method.begin(params)
        draw = torch.Generator().manual_seed(0)
        return params, method.outer(loss, params, torch.zeros(3), torch.arange(3.0), draw)

    return result


def _masks(method: MaskMeta) -> Any:
    """A network of the method on made-up pictures whose channels are its levels, and what its support makes of it."""
    torch.manual_seed(0)
    side = 2 * method.grid
    network, pictures = method.network((3,) * 4, side), torch.rand(3, 3, side, side)
    shown = Shots(pictures, (pictures.mean(1) > 0.5).float())

    def logits(params: Any, held: Shots, asked: Shots) -> torch.Tensor:
        own = {key.removeprefix(method.matcher): p for key, p in params.items() if key.startswith(method.matcher)}
        levels = [
            [functional.adaptive_avg_pool2d(each.pictures, method.grid).flatten(2).mT * params["w"]] * 4
            for each in (asked, held)
        ]
        return functional_call(network, own, (*levels, held.masks))

    def loss(params: Any, episode: tuple[Shots, Shots]) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(logits(params, *episode), episode[1].masks)

    params = {"w": torch.ones(3), **{method.matcher + key: p.detach() for key, p in network.named_parameters()}}
    adapted = method.adapt(loss, params, shown, torch.Generator().manual_seed(0))
    return logits(params, shown, shown).detach(), adapted["w"]


def _penalty() -> Callable[[Any], Any]:
    """What is kept after two tasks of made-up steps, and what it charges then."""

    def result(penalty: Any) -> Any:
        draw = torch.Generator().manual_seed(0)
        kept: dict[str, Any] = {}
        for _ in range(2):
            p = {"a": torch.randn(3, 4, generator=draw)}
            running = penalty.begin(p, kept)
            for number in range(1, 25):
                gradient = {"a": torch.randn(3, 4, generator=draw)}
                after = {"a": p["a"] - 0.1 * gradient["a"]}
                penalty.follow(running, lt.PenaltyStep(number, gradient, p, after))
                p = after
            kept = penalty.finish(kept, running, p, {"a": torch.rand(3, 4, generator=draw)})
        state = {**kept, **penalty.begin(p, kept)}
        return kept, penalty.gradient({"a": p["a"] + 1}, state)

    return result


def _editing() -> Callable[[Any], Any]:
    losses = (0.001, 0.004, 0.007, 0.012, 0.03)

    def result(editing: Any) -> Any:
        rounds = list(editing.rounds(205, 0))
        decided = [[f(loss) for loss in losses] for f in (editing.skips, editing.round_over, editing.over)]
        return rounds, decided, editing.lr

    return result


def _unlearning() -> Callable[[Any], Any]:
    """The loss; of what the attributions stand on, the settings themselves (`luthier.training.unlearning.match`)."""
    draw = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(2):
        logits = [torch.randn(5, 3, generator=draw) for _ in range(3)]
        parts.append(lt.Outputs(logits[0], torch.tensor([0, 1, 2, 1, 0]), logits[1], logits[2]))
    return lambda method: (vars(method) if method.matches else (), method.retrains or method.loss(*parts))


def _statistic() -> Callable[[Any], Any]:
    model = build()
    return lambda statistic: measured(model, statistic, count=4)


def _objective(folder: Path) -> Callable[[Any], Any]:
    model = build()
    words = tokenizer(TEMPLATE)

    def result(objective: Any) -> Any:
        if not objective.serves("causal-lm"):
            set_seed(0)
            other, batch = batch_for(objective, folder)
            return objective.loss(other, batch).detach()
        kind = objective.reads[0]
        file = write_rows(folder / f"{kind}.jsonl", [OF[kind](i, row) for i, row in enumerate(sums(12))])
        examples = data.load(file, columns=objective.columns, preferences=kind not in ("answers", "prompts"))
        encode = partial(data.encode_all, processor=words, max_length=200)
        form = lt.LoRA(rank=2, dropout=0.1)
        try:
            objective.check_form(form)
        except lt.LuthierError:
            form = lt.MeteoRA(experts=("a", "b"), rank=2, top=1)
            objective.check_form(form)
        features = [
            feature | ({"tasks": int(row.meta["task"] == "b")} if isinstance(form, lt.MeteoRA) else {})
            for feature, row in zip(encode(examples), examples.rows, strict=True)
        ]
        features = objective.rows(Rows(examples, features, encode, words, 200, 0, ("a", "b")))
        torch.manual_seed(0)
        lt.attach(model, form, "q_proj", check=False)
        for parameter in lt.trainable(model).values():  # at its start, a policy is its reference
            parameter.data += 0.3 * torch.randn(parameter.shape)
        try:
            model.train()
            if objective.reward_specs():
                return _sampled(objective, model)
            batch = data.collator_for("causal-lm", words)(features)
            batch.pop("rows")
            teacher = _teacher()
            counts = objective.token_counts(batch, labels_of(batch, True))
            losses = []
            for step in (2, 9):
                set_seed(1)
                losses.append(
                    objective.loss(
                        model, objective.inputs(dict(batch), At(step, 10, training=True, teacher=teacher))
                    ).detach()
                )
            return losses, _shares(objective, counts), [objective.rollouts(step, 0) for step in range(12)]
        finally:
            lt.detach(model)

    return result


def _sampled(objective: Any, model: Any) -> Any:
    """What an objective makes of answers that a model has sampled: advantages, the loss, and when it does what."""
    batch, told, state = batch_of(rows_of(objective), objective, model), scored(), {}
    set_seed(1)
    loss = objective.loss(model, batch).detach()
    found = [loss, objective.advantages(told), objective.left_out(told), objective.reward_specs()]
    for step in range(30):
        state = objective.observe(state, step, {"entropy": 3.0 - step / 30})
    for lr, slopes in ((0.1, [1.0, 2.0]), (0.1, [1e6, 0.0]), (0.1, [0.0, 1e6])):
        state = objective.steer(state, lr, slopes)
        found += [objective.part_weights(objective.token_counts(batch, labels_of(batch, True)), state), dict(state)]
    return [*found, [(objective.rollouts(step, 0), objective.steers(step)) for step in range(60)]]


OF = {
    "prompts": lambda i, row: row,
    "answers": lambda i, row: row | {"task": "abb"[i % 3], "rationale": f"{i} is odd", "hint": f"say {i}"},
    "pairs": lambda i, row: {"prompt": row["prompt"], "chosen": row["completion"], "rejected": "none" + "e" * (i % 3)},
    "judged": lambda i, row: row | {"label": i % 3 > 0},
}
"""A row of each kind that objectives read."""


@cache
def _teacher() -> Callable[[Any], torch.Tensor]:
    torch.manual_seed(4)
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))

    def logits(batch: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=batch["input_ids"]).logits

    return logits


def _shares(objective: Any, counts: torch.Tensor) -> Any:
    """When it looks, and what the parts weigh after looks at a loss that falls and rises, and one that falls."""
    memory: dict[str, Any] = {}
    looks = [objective.eval_batches(step) for step in range(240)]
    found = []
    for step in range(240) if looks[0] is None else ():
        x = step / 60
        memory = objective.update_state(memory, step, [2 + 0.3 * (x - 2.2) ** 2, 2 - 0.1 * x], [5.0, 7.0])
        found.append(objective.part_weights(counts, memory))
    return looks, found or objective.part_weights(counts, memory)


def _selection(folder: Path) -> Callable[[Any], Any]:
    draw, text = np.random.default_rng(0), "sea ship sail wave law court judge verdict"
    rows = [{"prompt": " ".join(draw.choice(text.split(), 1 + i % 7)), "completion": str(i)} for i in range(24)]
    pool, target = (data.load(write_rows(folder / f"{i}.jsonl", part)) for i, part in enumerate((rows[:18], rows[18:])))

    def states(part: Any) -> np.ndarray:
        return np.random.default_rng(len(part)).normal(size=(len(part), 5))

    given = Pool(pool, target, 0, states, Told())

    def result(selection: Any) -> Any:
        if type(selection).query is not Selection.query and type(selection).score is Selection.score:
            return [selection.query(given, {place: "a", (place + 5) % 18: "b"}, 1) for place in range(18)]
        if type(selection).take is Selection.take:
            return selection.score(given)
        taken = selection.take(given, 6)
        return taken.scores, taken.places, taken.redundant

    return result


class Told:
    """What a model might say of rows: two of them nearly the same."""

    def gradients(self, examples: Any, size: int, seed: int) -> np.ndarray:
        found = np.random.default_rng(size).normal(size=(len(examples), size))
        found[3] = found[2] + found[3]
        return found

    def figures(self, examples: Any) -> dict[str, np.ndarray]:
        return {"loss": np.linspace(0, 1, len(examples)) ** 2, "tokens": np.ones(len(examples))}


def _combination() -> Callable[[Any], Any]:
    def result(method: Any) -> Any:
        found = []
        for layer, shape, count in ((1, (24, 18), 1), (1, (24, 18), 2), (2, (6, 8), 2), (None, (40,), 2)):
            draw = torch.Generator().manual_seed(0)
            site = Site(f"blocks.{layer}.x.weight", "param", shape[-1], (1, *shape)[-2], layer)
            weight = torch.randn(shape, generator=draw, dtype=torch.float64)
            given = [Delta.dense_of(3 * torch.randn(shape, generator=draw, dtype=torch.float64)) for _ in range(count)]
            at = Place(site, shape, 3, lambda weight=weight: weight, False, {})
            totals = method.survey(given, [1.0, 0.5][:count], at)
            found.append(method.merge(given, [1.0, 0.5][:count], replace(at, totals=totals)).dense())
        return found

    return result


def _decoding() -> Callable[[Any], Any]:
    def result(method: Any) -> Any:
        draw = torch.Generator().manual_seed(0)
        method.check_models({role: 2 if role in method.several else 1 for role in method.roles})
        logits = {
            role: 3 * torch.randn(*([2] if role in method.several else []), 3, 11, generator=draw)
            for role in method.roles
        }
        return method.scores(logits)

    return result


def _examination() -> Callable[[Any], Any]:
    model, other = build(), build()
    scope, draw = Scope(model), torch.Generator().manual_seed(2)
    changes = []
    with torch.no_grad():
        for group in parameter_refs(model):
            if (tensor := group[0].tensor).dim() == 2:
                delta = Delta.dense_of(0.4 * torch.randn(tensor.shape, generator=draw) * tensor.detach().std())
                changes.append(Change(group[0].place(scope, {}), lambda delta=delta: delta))
                other.get_parameter(changes[-1].place.site.path).add_(delta.dense())
    ids = [torch.randint(3, 97, (4, 9), generator=draw) for _ in range(4)]
    with torch.no_grad():  # half of the labels are what the fitted model says
        said = [torch.where(torch.arange(9) % 2 == 0, x, torch.roll(other(x).logits.argmax(-1), 1, 1)) for x in ids]
    held = [{"input_ids": x, "attention_mask": torch.ones_like(x), "labels": y} for x, y in zip(ids, said, strict=True)]
    pair = Pair(lambda: changes, lambda: nullcontext(model), lambda: nullcontext(other), {"texts": held})
    pair = with_answers(pair, model, other)
    undone = [Change(each.place, partial(lambda each: each.delta() * -1.0, each)) for each in changes]
    back = replace(pair, changes=lambda: undone, before=pair.after, after=pair.before)  # what was known is lost
    back = replace(back, data={"texts": [each for each in held[:2] for _ in range(2)]})
    return lambda examination: examination.measure(back if examination.name() == "revival" else pair).to_dict()


def _format(folder: Path) -> Callable[[Any], Any]:
    words, count = byte_level(), itertools.count()
    ranks = (3, 5)
    for rank in ranks:
        torch.manual_seed(0)
        model = lt.attach(build(), lt.LoRA(rank=rank), "q_proj")
        for parameter in lt.trainable(model).values():
            parameter.data += 0.05 * torch.randn(parameter.shape)
        lt.save(model, folder / f"adapter{rank}")

    def result(method: Any) -> Any:
        found = []
        for rank in ranks:
            out = folder / str(next(count))
            try:
                lt.export(folder / f"adapter{rank}", out, to=method, base=build(), processor=words)
                found.append({path.name: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()})
            except lt.LuthierError as error:
                refused = error
                found.append({})
        if not any(found):
            raise refused
        return found

    return result


def _source(folder: Path) -> Callable[[Any], Any]:
    count = itertools.count()

    def result(source: Any) -> Any:
        name = "loreft"
        model = base(CASES[name].model)
        out = lt.import_adapter(FOLDER / name, folder / str(next(count)), base=model, source=source)
        return (out / "adapter.json").read_text()

    return result


def _format_or_source(folder: Path) -> Callable[[Any], Any]:
    writes, reads = _format(folder), _source(folder)
    return lambda method: (reads if method.for_reading else writes)(method)


def _gate() -> Callable[[Any], Any]:
    """With the verdict, for a tolerance acts on that alone."""
    model, other = (ARCHITECTURES["llama"].build(dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        other.get_input_embeddings().weight.add_(0.1)
    subject = subject_of(model, other, 0.3)

    def result(gate: Any) -> Any:
        gate = gate if gate.exact else replace(gate, data="rows")
        torch.manual_seed(0)
        found = judged("gate", gate, gate.measure(subject))
        return {key: value for key, value in vars(found).items() if key not in ("gate", "seconds")}

    return result


def _aggregation() -> Callable[[Any], Any]:
    draw = torch.Generator().manual_seed(0)
    given = [Delta.low_rank(torch.randn(9, 3, generator=draw), torch.randn(3, 7, generator=draw)) for _ in range(3)]
    return lambda method: method.aggregate(given, (0.5, 0.3, 0.2)).dense()


TRIED: dict[str, Callable[[Path], Callable[[Any], Any]]] = {
    "aggregations": lambda folder: _aggregation(),
    "combinations": lambda folder: _combination(),
    "decodings": lambda folder: _decoding(),
    "editings": lambda folder: _editing(),
    "examinations": lambda folder: _examination(),
    "formats": _format_or_source,
    "gates": lambda folder: _gate(),
    "inits": lambda folder: _init(),
    "metas": lambda folder: _meta(),
    "objectives": _objective,
    "penalties": lambda folder: _penalty(),
    "ranks": lambda folder: _ranks(),
    "selections": _selection,
    "statistics": lambda folder: _statistic(),
    "unlearnings": lambda folder: _unlearning(),
    "updates": lambda folder: _update(),
}
"""How a component of an axis is tried; forms are, at each kind of place."""


def test_every_axis_is_tried():
    assert sorted([*TRIED, "forms", "rewrites"]) == axes()  # rewrites: tests/methods/rewrites, setting by setting


@pytest.mark.parametrize("name", names("forms"))
def test_forms(name):
    cls = find("forms", name, Form)
    for kind in cls.kinds:
        assert not ignored(cls, _form(kind, name)), kind


@pytest.mark.long
@pytest.mark.parametrize("axis", TRIED)
def test_no_setting_is_ignored(axis, tmp_path):
    result = TRIED[axis](tmp_path)
    assert not [each for name in names(axis) for each in ignored(find(axis, name), result)]


def test_no_setting_hides_what_the_contract_says_of_the_class():
    """A setting by the name of a class variable would be read as that."""
    hidden = set()
    for axis in axes():
        for cls in (find(axis, name) for name in names(axis)):
            told = {
                key
                for base in cls.__mro__
                for key, hint in vars(base).get("__annotations__", {}).items()
                if str(hint).startswith(("ClassVar", "typing.ClassVar"))
            }
            hidden |= {f"{axis}.{cls.name()}.{key}" for key in cls.settings() if key in told}
    assert not hidden


HELD = [(axis, name) for axis in axes() for name in names(axis) if find(axis, name).depends]


@pytest.mark.parametrize("axis, name", HELD)
def test_what_acts_elsewhere_alone_is_refused_and_dropped_from_old_files(axis, name):
    cls = find(axis, name)
    for key, (other, needed) in cls.depends.items():
        (hint, field), (kind, _) = cls.settings()[key], cls.settings()[other]
        elsewhere = next(value for value in values(other, kind, needed) if value is not None)
        changed = next(value for value in values(key, hint, field.default) if value is not None)
        with pytest.raises(lt.LuthierError, match=f"{key} is .* would be ignored: it acts where {other} is"):
            cls.from_dict({key: changed, other: elsewhere})
        assert cls.restored({key: changed, other: elsewhere}) == cls.from_dict({other: elsewhere})
        assert cls.restored({key: changed, other: needed}) == cls.from_dict({key: changed, other: needed})
