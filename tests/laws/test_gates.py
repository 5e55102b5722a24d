"""The laws of gates, over the registry: a new file is tested the day it is dropped in."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch

import luthier as lt
from luthier.combining.parameter_refs import parameter_refs
from luthier.core.contracts.component import find, names
from luthier.core.contracts.examination import Change
from luthier.core.contracts.gate import Gate, Subject
from luthier.core.numerics.delta import Delta
from luthier.core.sites.scope import Scope
from luthier.examining.check.verdict import PASSES, TRIPPED, judged
from support.architectures import ARCHITECTURES
from support.toys import help_of_toy

GATES = names("gates")
TIMED = {"latency"}
"""Gates that measure the machine: two measurements of one model differ."""


def made(name: str, **settings) -> Gate:
    cls = find("gates", name, Gate)
    return cls.from_dict(settings if cls.exact else {"data": "rows", **settings})


def batches(rows: int = 24, seed: int = 1) -> list[dict]:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 97, (rows, 9), generator=draw)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part), "labels": part} for part in ids.split(8)]


def subject_of(before, after, scale: float) -> Subject:
    """Two models; what `after` writes and scores is worse where `scale` is above 0."""
    scope, changes = Scope(before), []
    for group in parameter_refs(before):
        if group[0].tensor.dim() == 2:
            first = group[0].tensor.detach().double()
            vectors = torch.linalg.qr(torch.randn(first.shape[0], 2, dtype=torch.double))[0]
            noise = scale * 4 * torch.linalg.matrix_norm(first, 2) * vectors @ torch.randn(2, first.shape[1]).double()
            delta = Delta.dense_of(noise) if scale else Delta.zero(*first.shape)
            changes.append(Change(group[0].place(scope, {}), partial(lambda d: d, delta)))
    rows = [{"question": f"q{n}", "context": f"c{n}", "answer": f"a{n}"} for n in range(24)]

    def labelled(source):
        return batches()

    def of(examples):
        return batches(
            len(examples), seed=len(examples[0].messages[0]["content"]) + ord(examples[0].messages[0]["content"][1])
        )

    def write(model, prompts, most):
        return ["I cannot do that." if model is before else "Sure."] * len(prompts)

    def score(model, source, most):
        return [1.0 if model is before else 1.0 - scale] * 24

    return Subject(
        lambda: nullcontext(before),
        lambda: nullcontext(after),
        lambda: changes,
        lambda source: rows,
        lambda source: [object()] * 24,  # type: ignore
        of,
        labelled,
        write,
        score,
    )


@pytest.fixture(scope="module")
def model():
    return ARCHITECTURES["llama"].build(dtype=torch.float64)


@pytest.mark.parametrize("name", GATES)
def test_it_states_its_equation_source_and_bounds(name):
    gate = made(name)
    assert len(gate.equation()) > 5 and gate.paper and gate.unit and gate.worse in ("higher", "lower")
    with pytest.raises(lt.LuthierError, match="tolerance"):
        made(name, tolerance=-0.1)


@pytest.mark.parametrize("name", [name for name in GATES if name not in TIMED])
def test_a_model_passes_against_itself(name, model):
    subject = subject_of(model, model, 0.0)
    before = {key: t.clone() for key, t in model.state_dict().items()}
    probes = made(name).measure(subject)
    assert torch.equal(probes.before, probes.after) and torch.equal(probes.before, probes.null)
    verdict = judged(
        "gate",
        made(name),
        replace(probes, before=probes.before.repeat(20), after=probes.after.repeat(20), null=probes.null.repeat(20)),
    )
    assert verdict.worsening == verdict.null == 0 and verdict.outcome == PASSES
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())


@pytest.mark.parametrize("name", GATES)
def test_its_probes_are_one_list_of_numbers_in_the_direction_that_it_says(name, model):
    worse = ARCHITECTURES["llama"].build(dtype=torch.float64)
    lt.attach(worse, lt.LoRA(rank=16), "all-linear")
    with torch.no_grad():
        for p in lt.trainable(worse).values():
            p.normal_(0, 1.0)
    probes = made(name).measure(subject_of(model, worse, 1.0))
    assert probes.before.shape == probes.after.shape == probes.null.shape and probes.before.dim() == 1
    assert probes.before.isfinite().all() and probes.after.isfinite().all()


def test_a_toy_file_is_seen(tmp_path):
    source = '''"""A toy."""
from dataclasses import dataclass
import torch
import luthier as lt

@dataclass(frozen=True)
class Toy(lt.Gate):
    """worsening = 0"""
    paper = "nobody 2026"
    unit = "nothing"
    exact = True
    tolerance: float = 1.0
    """Largest rise that may be released."""
    def check(self):
        self.within("tolerance", 0)
    def measure(self, subject):
        return lt.Probes(torch.zeros(1), torch.zeros(1), torch.zeros(1))
'''
    assert "--gates" in help_of_toy(tmp_path, "gates", source, __file__, "check")  # the laws ran over it


def test_a_tripped_gate_says_so(model):
    gate = made("task_score")
    verdict = judged("gate", gate, gate.measure(subject_of(model, ARCHITECTURES["llama"].build(), 1.0)))
    assert verdict.outcome == TRIPPED and verdict.worsening == 1
