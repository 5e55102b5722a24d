"""Loading one more adapter does no work that grows with how many are there, and nothing known is asked again."""

from __future__ import annotations

import cProfile

import pytest
import torch

import luthier as lt
from luthier.core.sites.structure import base_modules, base_parameters
from support.architectures import ARCHITECTURES

LLAMA = ARCHITECTURES["llama"]


def logits(model):
    with torch.no_grad():
        return model(**LLAMA.inputs()).logits


def calls_of(work) -> int:
    """Function calls that `work` takes: a measure of work that no load of the machine disturbs."""
    profile = cProfile.Profile()
    profile.runcall(work)
    return sum(entry.callcount for entry in profile.getstats())  # type: ignore[attr-defined]


def test_loading_takes_the_same_work_beside_twenty_as_beside_two(tmp_path):
    folder = lt.save(lt.attach(LLAMA.build(), lt.LoRA(rank=2)), tmp_path / "adapter")
    model, found = LLAMA.build(), {}
    for count in range(1, 21):
        found[count] = calls_of(lambda name=f"a{count}": lt.load(model, folder, name=name))
        lt.use(model, f"a{count}")
    assert found[20] < 1.02 * found[3]


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "mixtral"])
def test_walks_of_the_base_are_torchs_own_and_pass_by_what_hangs_on_it(name):
    build = ARCHITECTURES[name].build
    model = build()
    modules, tensors = dict(model.named_modules()), dict(model.named_parameters())
    repeated = [path for path, _ in model.named_parameters(remove_duplicate=False)]
    for _ in range(2):
        assert list(base_modules(model)) == list(modules.items())
        assert [(path, id(p)) for path, p in base_parameters(model)] == [(k, id(p)) for k, p in tensors.items()]
        assert [path for path, _ in base_parameters(model, remove_duplicate=False)] == repeated
        if "_luthier" not in vars(model):
            lt.attach(model, lt.LoRA(rank=2))


def test_a_module_that_was_met_is_not_looked_for_again_and_a_new_one_is():
    model, passes = LLAMA.build(), []
    model.register_forward_pre_hook(lambda *given: passes.append(1))
    lt.attach(model, lt.LoRA(rank=2), "q_proj", name="a")
    assert len(passes) == 2  # what a pass calls, found once for the model; what meets the adapter
    lt.attach(model, lt.LoRA(rank=2), "q_proj", name="b")
    assert len(passes) == 2
    lt.attach(model, lt.LoRA(rank=2), "v_proj", name="c")
    assert len(passes) == 3
    lt.attach(model, lt.LoRA(rank=2), "q_proj, v_proj", name="d")
    lt.detach(model)
    lt.attach(model, lt.LoRA(rank=2), "q_proj", name="a")
    assert len(passes) == 4


def test_a_silent_adapter_learns_of_the_mode_when_it_acts():
    model = LLAMA.build().train()
    for name in ("a", "b"):
        lt.attach(model, lt.LoRA(rank=2, dropout=0.5), name=name)
        for key, tensor in lt.trainable(model).items():
            if key.startswith(name):
                tensor.data.normal_(std=0.3)
    lt.use(model, "a")
    model.eval()
    lt.use(model, "b")
    assert torch.equal(logits(model), logits(model))  # no noise
    model.train()
    assert not torch.equal(logits(model), logits(model))
    lt.use(model, "a")
    assert not torch.equal(logits(model), logits(model))
    lt.attach(model.eval(), lt.LoRA(rank=2, dropout=0.5), name="c")
    assert torch.equal(logits(model), logits(model)) and not model.training
