"""A meta-training, from its specification to its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.func import functional_call
from transformers import set_seed

from luthier import data, models
from luthier.core.adapters.attach import attach
from luthier.core.adapters.control import trainable
from luthier.core.contracts.meta import Meta
from luthier.core.files import claimed
from luthier.core.numerics.confidence import calibration_error
from luthier.core.numerics.draws import draw_of, some_of
from luthier.core.owner import owned
from luthier.core.records import replace_json
from luthier.core.storage import store
from luthier.core.storage.spread import save_spread
from luthier.models import Loaded, licence_of
from luthier.training.adam_state import AdamState
from luthier.training.beginning import begin
from luthier.training.meta.dense import learn_masks
from luthier.training.meta.episodes import Domain, in_context, interval, read_domains, steps_of
from luthier.training.meta.learned import ADAPTER, NAME, RESULT, SPEC, MetaLearned
from luthier.training.meta.spec import MetaRun
from luthier.training.progress import quiet
from luthier.training.steps import trained
from luthier.training.unread import name_unread

WAYS = ("as it is", "adapted", "in context")


def meta_learn(spec: MetaRun, *, resume: bool = False, overwrite: bool = False, progress: bool = True) -> MetaLearned:
    """Trains an adapter that adapts from few demonstrations, and measures that in domains it never saw.

    The folder gets `meta.json`, `learned.json`, a state for each training, and `adapter/`. Beside it stand the base and
    joint training (the same steps with no inner loop), each as it is, adapted by the inner loop, and with the
    demonstrations before the prompt. With `resume` a killed run goes on with the same bits. Raises `LuthierError` for
    domains that do not serve before the weights are loaded.
    """
    if spec.meta.rows == "masks":
        return learn_masks(spec, resume=resume, overwrite=overwrite, progress=progress)
    console = Console(stderr=True, quiet=not progress)
    processor = models.processor_of(spec.model, "causal-lm")
    domains, tests = (read_domains(spec, each, processor) for each in (spec.domains, spec.tests))
    name_unread(console, processor, (each.rows for each in domains + tests))
    folder = claimed(spec.out, SPEC, "a meta-training", resume, overwrite)
    with quiet(), owned(folder):
        here = {"meta": spec.to_dict(), "data": [each.rows.fingerprint for each in domains + tests]}
        leftovers = [*folder.glob("state-*"), folder / ADAPTER, folder / RESULT]
        begin(folder, SPEC, here, "meta-training", overwrite, leftovers)
        loaded = models.load(spec.model, task="causal-lm", dtype=spec.dtype)
        set_seed(spec.seed)
        attach(loaded.model, spec.form, spec.where, NAME)
        start = {key: p.detach().clone() for key, p in trainable(loaded.model).items()}
        found = {"base": _measured(spec, loaded, tests, {})}
        none = type(spec.meta).from_dict({**spec.meta.to_dict(), **spec.meta.neutral})
        learners = {"joint": none} if spec.baseline else {}
        for name, method in {**learners, spec.meta.name(): spec.meta}.items():
            _put(loaded, start)
            own = trainable(loaded.model)
            beside = {key: torch.nn.Parameter(t) for key, t in method.begin(own).items()}
            adam = AdamState({**own, **beside}, spec.lr)
            step = partial(_outer_step, spec, method, adam, loss_of(loaded), _collator(loaded), domains)
            trained(adam, folder / f"state-{name}", steps_of(spec), console, name, step)
            found[name] = _measured(spec, loaded, tests, {key: adam.params[key].detach() for key in beside})
            spread = method.spread({key: p.detach() for key, p in adam.params.items()})
        figures = {name: each.figures(spec.seed) for name, each in found.items()}
        gains = _gains(found["joint"], found[spec.meta.name()], spec.seed) if spec.baseline else {}
        store.save(
            loaded.model,
            folder / ADAPTER,
            NAME,
            base=spec.model,
            measured={"steps": spec.steps, "task": "causal-lm", "meta": figures},
            base_license=licence_of(spec.model),
        )
        if spread:
            save_spread(folder / ADAPTER, NAME, spread)
        told = {"figures": figures, "gains": gains, "episodes": {name: each.losses for name, each in found.items()}}
        replace_json(folder / RESULT, {"by": spec.meta.name(), **told})
        return MetaLearned(folder, folder / ADAPTER, figures, gains, loaded.model, loaded.processor)


@torch.no_grad()
def _put(loaded: Loaded, tensors: Mapping[str, Tensor]) -> None:
    for key, p in trainable(loaded.model).items():
        p.copy_(tensors[key])


def _outer_step(
    spec: MetaRun, method: Meta, adam: AdamState, loss: Any, collate: Any, domains: Sequence[Domain], step: int
) -> float:
    chosen = some_of(domains, spec.together, f"{spec.seed} domains {step}")
    total = 0.0
    for domain in chosen:
        shown, asked = domain.drawn(spec.shots, spec.asked, f"{spec.seed} {step}")
        batches = [collate([domain.features[place] for place in places]) for places in (shown, asked)]
        value, slopes = method.outer(
            loss, adam.params, batches[0], batches[1], draw_of(f"{spec.seed} {step} {domain.rows.fingerprint}")
        )
        total += float(value) / len(chosen)
        adam.add({key: slopes[key] / len(chosen) for key in adam.params})
    adam.step()
    return total


def loss_of(loaded: Loaded) -> Any:
    """Returns the mean loss of a batch's labels as a function of the adapter's tensors, in evaluation mode."""
    said = said_of(loaded)
    return lambda params, batch: torch.nn.functional.cross_entropy(*said(params, batch))


def said_of(loaded: Loaded) -> Any:
    """Returns (logits [places, V], labels [places]) of a batch's labels as a function of the adapter's tensors."""
    model = loaded.model.eval()
    names = {key: path for path, p in model.named_parameters() for key, q in trainable(model).items() if p is q}

    def said(params: Mapping[str, Tensor], batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        own = {names[key]: p for key, p in params.items() if key in names}
        given = {key: t.to(model.device) for key, t in batch.items() if key not in ("labels", "rows")}
        logits = functional_call(model, own, kwargs=given).logits[:, :-1]
        wanted = batch["labels"].to(model.device)[:, 1:]
        at = wanted.ne(-100)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))[at], wanted[at]

    return said


def _collator(loaded: Loaded) -> Any:
    return data.collator_for("causal-lm", loaded.processor)


@dataclass(frozen=True)
class Measured:
    """The loss of each episode by way, and the calibration error of what is adapted."""

    losses: dict[str, list[float]]
    calibration: float

    def figures(self, seed: int) -> dict[str, dict[str, float]]:
        """Returns the mean loss of each way with its interval, and the calibration."""
        made = {way: interval(np.asarray(values), seed) for way, values in self.losses.items()}
        made["adapted"]["calibration"] = self.calibration
        return made


def _gains(joint: Measured, learner: Measured, seed: int) -> dict[str, dict[str, float]]:
    """Joint training's loss less the learner's, episode by episode."""
    return {way: interval(np.asarray(values) - np.asarray(learner.losses[way]), seed)
            for way, values in joint.losses.items()}  # fmt: skip


SAMPLES = 8
"""Adapters that predictions are averaged over, where a method draws them."""


def _measured(spec: MetaRun, loaded: Loaded, tests: Sequence[Domain], beside: Mapping[str, Tensor]) -> Measured:
    """The loss in episodes of new domains: as it is, after the inner loop, and with the demonstrations before."""
    said, collate = said_of(loaded), _collator(loaded)
    loss, params = loss_of(loaded), {**trainable(loaded.model), **beside}
    meta = spec.meta if beside else type(spec.meta).from_dict({**spec.meta.to_dict(), **spec.meta.plain})
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    sure: list[Tensor] = []
    right: list[Tensor] = []
    for domain in tests:
        for number in range(spec.episodes):
            key = f"{spec.seed} test {number}"
            shown, asked = domain.drawn(spec.shots, spec.asked, key)
            demonstrations, rows = (collate([domain.features[i] for i in places]) for places in (shown, asked))
            draw = draw_of(f"{key} {domain.rows.fingerprint}")
            adapted = meta.adapt(loss, params, demonstrations, draw)
            longer = data.encode_all(in_context(domain.rows, shown, asked), loaded.processor, max_length=None)
            with torch.no_grad():
                found["as it is"].append(float(loss(params, rows)))
                found["in context"].append(float(loss(params, collate(list(longer)))))
                each = [said(sample, rows) for sample in meta.samples(adapted, SAMPLES, draw)]
            chances = torch.stack([logits.softmax(-1) for logits, _ in each]).mean(0)
            labels = each[0][1]
            found["adapted"].append(float(-chances.gather(-1, labels[:, None]).log().mean()))
            sure.append(chances.amax(-1).cpu())
            right.append(chances.argmax(-1).eq(labels).cpu())
    return Measured(found, calibration_error(torch.cat(sure).numpy(), torch.cat(right).numpy(), bins=10))
