"""peft's models in the same Trainer: the same losses from the same start."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console
from transformers import set_seed

from luthier.comparing.fit import fit
from luthier.comparing.measures.intruders import CHANGES
from luthier.comparing.plan import plan
from luthier.comparing.study import Study
from luthier.comparing.with_peft import fit_peft
from luthier.core.adapters.attach import state_of
from luthier.core.adapters.control import tensors
from luthier.core.contracts.combination import examined
from luthier.training.attachment import attach_all
from luthier.training.prepare import prepare
from luthier.training.session import load

peft = pytest.importorskip("peft")
STEPS = {"steps": 12, "batch": 4, "lr": 1e-2, "eval_fraction": 0.2, "eval_every": 4, "schedule": "cosine"}


def jobs(model: str, train: str, tmp_path, name: str, where: str | None = None):
    """(Luthier's job, peft's) of a method."""
    own = {"form": {"dropout": 0.0}} if name == "lora" else {}
    study = Study.from_dict(
        {
            "models": model,
            "data": {"d": {"train": train}},
            "methods": [name, f"peft:{name}"],
            "seeds": [3],
            "budget": "8%",
            "training": STEPS,
            "settings": {each: own | ({"where": where} if where else {}) for each in (name, f"peft:{name}")},
        }
    )
    return plan(study, tmp_path).jobs


def copied(run):
    """Gives peft's factors the values that Luthier draws from the same seed, in another order of drawing."""
    prepared = prepare(run)
    set_seed(run.training.seed)
    loaded = load(run, prepared)
    attach_all(run, loaded, prepared, Console(quiet=True))
    drawn = tensors(loaded.model, run.name)
    paths = [site.path for site in state_of(loaded.model).components[0].sites]

    def start(wrapped) -> None:
        for path in paths:
            layer = wrapped.get_base_model().get_submodule(path)
            layer.lora_A["default"].weight.data.copy_(drawn[f"{run.name}.{path}.A"])
            assert not layer.lora_B["default"].weight.any() and not drawn[f"{run.name}.{path}.B"].any()

    return start


@pytest.mark.parametrize("name", ["lora", "dora"])
@pytest.mark.parametrize("which", ["llama", "bert"])
def test_the_same_start_gives_the_same_curve(request, llama, bert, letters, additions, tmp_path, name, which):
    """Dropout within BERT is drawn alike: both train from the same seed."""
    model, train = {"llama": (llama, additions["train"]), "bert": (bert, letters)}[which]
    ours, theirs = jobs(model, train, tmp_path, name, {"llama": None, "bert": "query, value"}[which])
    mine, other = fit(ours), fit_peft(theirs.run, copied(ours.run))
    assert mine.trainable == other.trainable
    for left, right in ((mine.losses, other.losses), (mine.eval_losses, other.eval_losses)):
        assert [step for step, _ in left] == [step for step, _ in right]
        assert [loss for _, loss in left] == pytest.approx([loss for _, loss in right], abs=1e-4)
    assert abs(mine.losses[0][1] - mine.losses[-1][1]) > 1e-2  # something was learned
    found = CHANGES["luthier"](mine.model), CHANGES["peft"](other.model)
    ours_now, theirs_now = ([change for change in each if examined(change.place)] for each in found)
    assert len(ours_now) == len(theirs_now) > 3
    for left, right in zip(ours_now, theirs_now, strict=True):
        assert left.place.site.layer == right.place.site.layer
        assert (left.delta().dense() - right.delta().dense()).norm() < 0.02 * left.delta().norm()


def test_recomputes_activations_where_ours_does(llama, additions, tmp_path):
    _, theirs = jobs(llama, additions["train"], tmp_path, "lora")

    def counted(run) -> tuple[list[float], int]:
        """The losses, and how often a layer ran."""
        seen: list[None] = []

        def watch(wrapped) -> None:
            layer = wrapped.get_base_model().model.layers[0].mlp
            layer.register_forward_pre_hook(lambda *_: seen.append(None))

        return [loss for _, loss in fit_peft(run, watch).losses], len(seen)

    settings = replace(theirs.run.training, gradient_checkpointing=True)
    (plain, once), (again, twice) = counted(theirs.run), counted(replace(theirs.run, training=settings))
    assert again == pytest.approx(plain, rel=1e-5) and twice == once + theirs.run.training.steps


def test_its_own_start_is_drawn_by_the_seed(llama, additions, tmp_path):
    _, theirs = jobs(llama, additions["train"], tmp_path, "lora")
    first, again = fit(theirs), fit(theirs)
    assert first.losses == again.losses and first.bytes > 4 * first.trainable
    with first.frozen():
        assert not any(p.requires_grad for p in first.model.parameters())
