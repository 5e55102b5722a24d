"""MeteoRA's gates over three finished adapters of SmolLM2-135M: whose expert they choose, and what that is worth.

Three tasks of `_tasks.py`, whose rows differ by their text alone, each get a LoRA; then, for each seed, gates over the
three are fitted to rows of all of them, experts frozen, as the paper has it and with the β = 50 of the authors' code.
The gates' rate is chosen on training rows held out, by gates of every third block that are fitted to the inputs they
have in the bare model, which are computed once (the gates' own loss alone, in as many steps). On test rows, base, own
adapter, the three averaged alike and the routed adapter are scored by the share of answers whose every token is the
likeliest (what greedy decoding would give) and by the mean loss of their tokens. What all rows begin with (the system
message) cannot be told apart, so the shares of tokens sent to the own expert count from the text on. A row is routed
right where most decisions at its answer, over all gates, are for its own expert.

    python -m bench axes-routing --data FOLDER [--probe]

`--probe` tries the gates' rates, from a linear layer's start and from the authors', and no more.

FOLDER is that of `_tasks.py`.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench.axes import _tasks as tasks
from bench.axes._study import TUNING, Ledger, markdown, mean, parsed
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

import luthier as lt
from luthier import models
from luthier.core.adapters.attach import find_state
from luthier.core.adapters.control import watched
from luthier.core.contracts.form import kaiming
from luthier.training import Run, train

Row = dict[str, Any]
TASKS, TRAINED, TESTED = ("sentiment", "intent", "problem"), 240, 40
"""Rows of each task that the gates are fitted to and that are tested."""
STEPS, BATCH, BETA = 60, 6, 50.0
RATES, SHOWN, HELD, EVERY = (5e-4, 5e-3, 2e-2, 8e-2), 48, 24, 3
"""Rates; rows of each task that they are chosen by, and on; every how manieth block has gates for that."""
STARTS: dict[str, float | None] = {"probe": None, "probe, spread 1": 1.0}
"""By way, the deviation of the gates' start: a linear layer's own, and that of the authors' code."""
INPUTS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
"""Layers of a block that read different inputs."""


@dataclass
class Seen:
    """What the gates read of one row."""

    own: int
    """Place of its task."""
    inputs: dict[str, Tensor]
    """[tokens, d_in] by layer."""
    told: Tensor
    """[tokens], whether an answer's token follows."""


@torch.inference_mode()
def seen(loaded: Any, given: argparse.Namespace) -> list[list[Seen]]:
    """By task, rows as they pass through the bare model."""
    paths = [
        f"model.layers.{i}.{name}" for i in range(0, loaded.model.config.num_hidden_layers, EVERY) for name in INPUTS
    ]
    store: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        return lambda module, args: store.update({path: args[0]})

    hooks = [loaded.model.get_submodule(path).register_forward_pre_hook(keep(path)) for path in paths]
    found: list[list[Seen]] = []
    for own, name in enumerate(TASKS):
        rows = tasks.drawn(given.data, name, "train", tasks.ROWS + HELD)
        found.append([])
        for chosen in (rows[:SHOWN], rows[tasks.ROWS :]):
            for batch in tasks.batches(loaded.processor, given.work / "routing" / "seen.jsonl", chosen):
                loaded.model(input_ids=batch.ids, attention_mask=batch.mask)
                for i, mask in enumerate(batch.mask.bool()):
                    inputs = {path: x[i][mask].half() for path, x in store.items()}
                    found[-1].append(Seen(own, inputs, pad(batch.told, (0, 1))[i][mask]))
    for hook in hooks:
        hook.remove()
    return found


def probed(found: Sequence[Sequence[Seen]], rate: float, start: int, spread: float | None) -> Row:
    """Gates fitted to inputs that are kept, and what they do on the rows held out; `spread` is the deviation of their
    start, by default a linear layer's."""
    fitted, held = [[row for each in found for row in each[part]] for part in (slice(SHOWN), slice(SHOWN, None))]
    torch.manual_seed(TUNING)
    begun = kaiming if spread is None else lambda *shape: spread * torch.randn(*shape)
    gates = {path: begun(len(TASKS), x.shape[1]).requires_grad_() for path, x in fitted[0].inputs.items()}
    optimizer, draw = torch.optim.AdamW(gates.values(), lr=rate, weight_decay=0), random.Random(TUNING)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / STEPS)) / 2
        rows = draw.sample(fitted, BATCH)
        wanted = torch.cat([torch.full((len(row.told),), row.own) for row in rows])
        losses = [
            cross_entropy(torch.cat([row.inputs[path] for row in rows]).float() @ gate.mT, wanted)
            for path, gate in gates.items()
        ]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    with torch.no_grad():
        decisions = [torch.stack([row.inputs[path].float() @ gate.mT for path, gate in gates.items()]) for row in held]
    return judged(decisions, [row.told for row in held], [row.own for row in held], start)


def judged(decisions: Sequence[Tensor], told: Sequence[Tensor], own: Sequence[int], start: int) -> Row:
    """Of rows of logits [gates, tokens, experts]: the loss of the gates, the shares for the own expert of tokens from
    place `start` on and of those before answers, and the share of rows routed right."""
    rows = []
    for logits, answer, task in zip(decisions, told, own, strict=True):
        right = (logits.argmax(-1) == task).double()
        votes = torch.bincount(logits.argmax(-1)[:, answer].flatten(), minlength=logits.shape[-1])
        loss = -logits[:, start:].float().log_softmax(-1)[..., task].double().mean()
        rows.append(
            torch.stack([loss, right[:, start:].mean(), right[:, answer].mean(), (votes.argmax() == task).double()])
        )
    return dict(zip(("gates", "tokens", "answers", "rows"), torch.stack(rows).mean(0).tolist(), strict=True))


def gates(given: argparse.Namespace, names: tuple[str, ...], rate: float, seed: int) -> Path:
    """The run folder of gates, fitted to rows of all tasks."""
    folder = given.work / "routing" / f"gates-{rate:g}-{seed}"
    if not (folder / "adapter").is_dir():
        rows = [row for name in TASKS for row in tasks.drawn(given.data, name, "train", TRAINED)]
        form = lt.MeteoRA(experts=names, rank=tasks.EXPERT.rank, train="router")
        source = tasks.written(given.work / "routing" / "mix.jsonl", rows)
        objective, training = lt.Routing(beta=BETA), tasks.settings(STEPS, rate, seed, BATCH)
        start = time.perf_counter()
        train(Run(tasks.MODEL, source, form, out=str(folder), objective=objective, training=training), resume=True)
        print(f"gates at {rate:g}, seed {seed}: fitted in {time.perf_counter() - start:.0f} s", flush=True)
    return folder


def common(given: Sequence[tasks.Batch]) -> int:
    """How many tokens all rows begin with."""
    rows = [ids[mask.bool()].tolist() for batch in given for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    return next(i for i, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1)


@torch.inference_mode()
def scored(model: Any, given: Sequence[tasks.Batch], own: int, start: int) -> Row:
    """Answers and their loss, and of a routed adapter how it routed."""
    scores, decisions, told = tasks.Scores(), [], []
    model.eval()
    for batch in given:
        with watched(model) if find_state(model) else nullcontext([]) as routes:
            scores.add(model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1], batch)
        for i, mask in enumerate(batch.mask.bool() if routes else []):
            decisions.append(torch.stack([route.logits[i][mask] for route in routes]))
            told.append(pad(batch.told, (0, 1))[i][mask])
    return scores.found() | (judged(decisions, told, [own] * len(told), start) if decisions else {})


def measure(given: argparse.Namespace, way: str, seed: int, prepare: Callable[[Any, str], None], **more: Any) -> None:
    """Scores one way on the test rows of each task, if that has not been done."""
    left = [name for name in TASKS if not given.ledger.runs(way=way, task=name, seed=seed)]
    if not left:
        return
    loaded = models.load(tasks.MODEL, dtype=tasks.DTYPE)
    found = tested(loaded, given)
    start = common([batch for each in found.values() for batch in each])
    for name in left:
        prepare(loaded.model, name)
        scores = scored(loaded.model, found[name], TASKS.index(name), start)
        given.ledger.add({"way": way, "task": name, "seed": seed, **more} | scores)
        if find_state(loaded.model):
            lt.detach(loaded.model)


def tested(loaded: Any, given: argparse.Namespace) -> dict[str, list[tasks.Batch]]:
    """Test rows by task."""
    scratch = given.work / "routing" / "test.jsonl"
    return {
        name: tasks.batches(loaded.processor, scratch, tasks.drawn(given.data, name, "test", TESTED)) for name in TASKS
    }


def probe(given: argparse.Namespace) -> None:
    """Tries the rates."""
    left = [
        (way, rate, spread)
        for way, spread in STARTS.items()
        for rate in RATES
        if not given.ledger.runs(way=way, rate=rate)
    ]
    if left:
        loaded = models.load(tasks.MODEL, dtype=tasks.DTYPE)
        found, start = seen(loaded, given), common([b for each in tested(loaded, given).values() for b in each])
        for way, rate, spread in left:
            given.ledger.add({"way": way, "seed": TUNING, "rate": rate} | probed(found, rate, start, spread))


def saved(folders: dict[str, Path]) -> Callable[[Any, str], None]:
    """The adapter of a run folder for each task."""

    def load(model: Any, name: str) -> None:
        lt.load(model, folders[name] / "adapter")

    return load


def alike(names: tuple[str, ...]) -> Callable[[Any, str], None]:
    """All experts at the same weight for every token: the mean of the three changes."""

    def attach(model: Any, _: str) -> None:
        lt.attach(model, lt.MeteoRA(experts=names, rank=tasks.EXPERT.rank, top=len(names)))
        for key, tensor in lt.trainable(model).items():
            if key.endswith("gate"):
                tensor.data.zero_()

    return attach


def table(ledger: Ledger) -> str:
    """One row per task: answers and their loss each way, and how often the routed adapter chose the own expert."""

    def cell(way: str, name: str) -> str:
        runs = ledger.runs(way=way, task=name)
        return f"{mean([100 * run['exact'] for run in runs], 1)} ({mean([run['loss'] for run in runs], 2)})"

    rows = []
    for name in TASKS:
        routed = ledger.runs(way="routed", task=name)
        shares = [mean([100 * run[key] for run in routed], 1) for key in ("rows", "tokens", "answers")]
        rows.append([name, *(cell(way, name) for way in ("base", "own", "alike", "routed")), *shares])
    head = (
        "task",
        "base",
        "own adapter",
        "three alike",
        "routed",
        "rows routed right, %",
        "tokens, %",
        "at answers, %",
    )
    return markdown(head, rows)


def rates(ledger: Ledger) -> str:
    """One row a rate: the gates on the rows held out."""
    rows = []
    for way, spread in STARTS.items():
        for run in ledger.runs(way=way):
            shares = [f"{100 * run[key]:.1f}" for key in ("tokens", "answers", "rows")]
            rows.append([f"{run['rate']:g}", "linear" if spread is None else "normal", f"{run['gates']:.3f}", *shares])
    return markdown(
        ("rate", "start", "loss of the gates", "tokens for the own expert, %", "at answers, %", "rows, %"), rows
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and prints the tables."""
    given = parsed(arguments, __doc__, "routing", seeds=2, flags={"probe": "try the gates' rates and starts alone"})
    if not given.table:
        probe(given)
    if not given.table and not given.probe:
        folders = {name: tasks.fitted(given.data, given.work, name) for name in TASKS}
        names = tuple(f"{name}={folder}" for name, folder in folders.items())
        measure(given, "base", 0, lambda model, name: None)
        measure(given, "own", 0, saved(folders))
        measure(given, "alike", 0, alike(names))
        rate = given.ledger.best("gates", way="probe")
        for seed in range(given.seeds):
            measure(given, "routed", seed, routed_by(given, names, rate, seed), rate=rate)
    print(rates(given.ledger), table(given.ledger), sep="\n")


def routed_by(given: argparse.Namespace, names: tuple[str, ...], rate: float, seed: int) -> Callable[[Any, str], None]:
    """Gates for all tasks, fitted when they are asked for."""

    def load(model: Any, _: str) -> None:
        lt.load(model, gates(given, names, rate, seed) / "adapter")

    return load
