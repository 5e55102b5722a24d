"""The laws of gates, over the registry: a new file is tested the day it is dropped in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import luthier as lt
from luthier.core.contracts.component import find, names
from luthier.core.contracts.gate import Gate
from luthier.examining.check.verdict import PASSES, TRIPPED, judged
from support.architectures import ARCHITECTURES
from support.gated import subject_of

GATES = names("gates")
TIMED = {"latency"}
"""Gates that measure the machine: two measurements of one model differ."""


def made(name: str, **settings) -> Gate:
    cls = find("gates", name, Gate)
    return cls.from_dict(settings if cls.exact else {"data": "rows", **settings})


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


def test_a_tripped_gate_says_so(model):
    gate = made("task_score")
    verdict = judged("gate", gate, gate.measure(subject_of(model, ARCHITECTURES["llama"].build(), 1.0)))
    assert verdict.outcome == TRIPPED and verdict.worsening == 1
