"""A meta-training on masks: biases for every kind, one network that reads a mask off its support."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from transformers import set_seed

from luthier import models
from luthier.core.adapters.attach import attach
from luthier.core.adapters.control import trainable
from luthier.core.contracts.meta import MaskMeta, Shots
from luthier.core.errors import LuthierError
from luthier.core.files import claimed
from luthier.core.guard import guarded
from luthier.core.numerics.draws import draw_of, some_of
from luthier.core.numerics.resampling import mean_interval
from luthier.core.owner import owned
from luthier.core.records import replace_json
from luthier.core.storage import store
from luthier.models import Loaded, licence_of
from luthier.training.adam_state import AdamState
from luthier.training.beginning import begin
from luthier.training.meta.episodes import interval, steps_of
from luthier.training.meta.learned import ADAPTER, NAME, RESULT, SPEC, MetaLearned
from luthier.training.meta.levels import levels_of
from luthier.training.meta.masks import Kind, read_kinds
from luthier.training.meta.pictures import save_pictures
from luthier.training.meta.spec import MetaRun
from luthier.training.progress import quiet
from luthier.training.steps import trained

TASKS, PICTURES, ADAPTERS = "tasks/", "pictures", "adapters"
ALL = "all"
"""The one set of biases of joint training."""
WAYS = ("shuffled", "as it is", "adapted")
Logits = Callable[[Mapping[str, Tensor], Shots, Tensor], Tensor]
"""The masks' logits [n, side, side], of tensors, of what is shown, and of pictures."""


def learn_masks(spec: MetaRun, *, resume: bool, overwrite: bool, progress: bool) -> MetaLearned:
    """As `meta_learn`, on kinds of masks.

    Beside the learner stand the network before any training, and joint training (one set of biases for all kinds).
    The folder gets `adapters/`, the biases of each kind that was learned, `adapter/`, their mean, and `pictures/`, of
    each kind that was not: the pictures of an episode, their masks, and what is predicted as it is and adapted.
    """
    meta = spec.meta
    if not isinstance(meta, MaskMeta):
        raise LuthierError(f"{meta.name()} says that it learns masks; it must be a MaskMeta.")
    console = Console(stderr=True, quiet=not progress)
    processor = models.processor_of(spec.model, "embedding")
    kinds, tests = read_kinds(spec, processor)
    folder = claimed(spec.out, SPEC, "a meta-training", resume, overwrite)
    with quiet(), owned(folder):
        here = {"meta": spec.to_dict(), "data": [each.fingerprint for each in kinds + tests]}
        leftovers = [*folder.glob("state-*"), *(folder / each for each in (ADAPTER, RESULT, PICTURES, ADAPTERS))]
        begin(folder, SPEC, here, "meta-training", overwrite, leftovers)
        loaded = models.load(spec.model, task="embedding", dtype=spec.dtype)
        set_seed(spec.seed)
        attach(loaded.model, spec.form, spec.where, NAME)
        start = {key: p.detach().clone() for key, p in trainable(loaded.model).items()}
        network = meta.network(_widths(spec, loaded, meta.grid), spec.side).to(loaded.model.device, loaded.model.dtype)
        logits = logits_of(loaded, network, meta.grid)
        untrained = {MaskMeta.matcher + key: p.detach().clone() for key, p in network.named_parameters()}
        figures = {"base": _measured(spec, logits, {**start, **untrained}, tests, None)}
        sets = {"joint": (ALL,)} if spec.baseline else {}
        adam = None
        for name, owners in {**sets, spec.meta.name(): tuple(kind.name for kind in kinds)}.items():
            beside = {f"{TASKS}{owner}/{key}": p for owner in owners for key, p in start.items()}
            adam = AdamState({key: nn.Parameter(p.clone()) for key, p in {**beside, **untrained}.items()}, spec.lr)
            step = _stepper(spec, adam, logits, kinds, list(start))
            trained(adam, folder / f"state-{name}", steps_of(spec), console, name, step)
            pictures = folder / PICTURES if name == spec.meta.name() else None
            figures[name] = _measured(spec, logits, mean_of(adam.params, owners, list(start)), tests, pictures)
        assert adam is not None
        _save(spec, loaded, adam, kinds, list(start), folder, figures)
        replace_json(folder / RESULT, {"by": spec.meta.name(), "figures": figures})
        return MetaLearned(folder, folder / ADAPTER, figures, {}, loaded.model, loaded.processor)


def _widths(spec: MetaRun, loaded: Loaded, grid: int) -> tuple[int, ...]:
    """The widths of the model's four levels, by one pass; raises for a model that cannot read such pictures."""
    nothing = torch.zeros(1, 3, spec.side, spec.side, dtype=loaded.model.dtype, device=loaded.model.device)
    with torch.no_grad(), guarded(f"{spec.model} cannot read pictures of {spec.side} pixels a side; give another side"):
        states = loaded.model(pixel_values=nothing, output_hidden_states=True).hidden_states
    return tuple(level.shape[-1] for level in levels_of(states, grid))


def logits_of(loaded: Loaded, network: nn.Module, grid: int) -> Logits:
    """Returns the masks' logits as a function of a task's biases, by the adapter's names, and the network's tensors."""
    model, held = loaded.model.eval(), trainable(loaded.model)
    names = {key: path for path, p in model.named_parameters() for key, q in held.items() if p is q}

    def logits(params: Mapping[str, Tensor], shown: Shots, pictures: Tensor) -> Tensor:
        own = {names[key]: p for key, p in params.items() if key in names}
        whole = torch.cat([shown.pictures, pictures]).to(model.device, model.dtype)
        states = functional_call(model, own, kwargs={"pixel_values": whole, "output_hidden_states": True}).hidden_states
        levels = levels_of(states, grid)
        queries, keys = [each[len(shown) :] for each in levels], [each[: len(shown)] for each in levels]
        tensors = {
            key.removeprefix(MaskMeta.matcher): p for key, p in params.items() if key.startswith(MaskMeta.matcher)
        }
        return functional_call(network, tensors, (queries, keys, shown.masks.to(whole)))

    return logits


def loss_of(logits: Logits) -> Callable[[Mapping[str, Tensor], tuple[Shots, Shots]], Tensor]:
    """Returns the mean binary cross-entropy of the asked pixels, as a function of the tensors."""

    def loss(params: Mapping[str, Tensor], episode: tuple[Shots, Shots]) -> Tensor:
        shown, asked = episode
        found = logits(params, shown, asked.pictures)
        return functional.binary_cross_entropy_with_logits(found, asked.masks.to(found))

    return loss


def of_task(params: Mapping[str, Tensor], owner: str, own: Sequence[str]) -> dict[str, str]:
    """Returns, by the name that a learner knows, the name of each tensor of a task: its biases, and the network's."""
    shared = {key: key for key in params if key.startswith(MaskMeta.matcher)}
    return {**{key: f"{TASKS}{owner}/{key}" for key in own}, **shared}


def mean_of(params: Mapping[str, Tensor], owners: Sequence[str], own: Sequence[str]) -> dict[str, Tensor]:
    """Returns what a task to come starts from: the mean of the biases of those learned, and the network."""
    held = {key: torch.stack([params[f"{TASKS}{owner}/{key}"] for owner in owners]).mean(0).detach() for key in own}
    return {**held, **{key: p.detach() for key, p in params.items() if key.startswith(MaskMeta.matcher)}}


def _stepper(
    spec: MetaRun, adam: AdamState, logits: Logits, kinds: Sequence[Kind], own: Sequence[str]
) -> Callable[[int], float]:
    """The outer step of a number; biases of kinds that it does not draw have no gradient, so that Adam leaves them."""
    loss, joint = loss_of(logits), f"{TASKS}{ALL}/{own[0]}" in adam.params

    def step(number: int) -> float:
        chosen = some_of(kinds, spec.together, f"{spec.seed} domains {number}")
        total = 0.0
        for kind in chosen:
            shown, asked = kind.drawn(spec.shots, spec.asked, f"{spec.seed} {number}")
            names = of_task(adam.params, ALL if joint else kind.name, own)
            params = {key: adam.params[name] for key, name in names.items()}
            draw = draw_of(f"{spec.seed} {number} {kind.fingerprint}")
            value, slopes = spec.meta.outer(loss, params, shown, (shown, asked), draw)
            total += float(value) / len(chosen)
            adam.add({name: slopes[key] / len(chosen) for key, name in names.items()})
        adam.step()
        return total

    return step


def _measured(
    spec: MetaRun, logits: Logits, params: Mapping[str, Tensor], tests: Sequence[Kind], pictures: Path | None
) -> dict[str, dict[str, float]]:
    """Loss and IoU in episodes of kinds that were not learned; the last episode of each kind is drawn."""
    loss = loss_of(logits)
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for kind in tests:
        for number in range(spec.episodes):
            key = f"{spec.seed} test {number}"
            shown, asked = kind.drawn(spec.shots, spec.asked, key)
            adapted = spec.meta.adapt(loss, params, shown, draw_of(f"{key} {kind.fingerprint}"))
            with torch.no_grad():
                said = {
                    "shuffled": logits(params, Shots(shown.pictures, shown.masks.roll(1, 0)), asked.pictures),
                    "as it is": logits(params, shown, asked.pictures),
                    "adapted": logits(adapted, shown, asked.pictures),
                }
            for way, each in said.items():
                found[way].append(scores(each, asked.masks.to(each)))
        if pictures is not None:
            save_pictures(pictures / f"{kind.name}.png", asked, [said["as it is"], said["adapted"]])
    return {way: _figures(np.asarray(values), spec.seed) for way, values in found.items() if _told(spec, way)}


def _told(spec: MetaRun, way: str) -> bool:
    return way != "shuffled" or spec.shots > 1


def scores(logits: Tensor, masks: Tensor) -> tuple[float, float]:
    """Returns (binary cross-entropy of a pixel, intersection over union of all pixels at ½; 1 where both are empty)."""
    loss = functional.binary_cross_entropy_with_logits(logits, masks)
    said, true = logits > 0, masks > 0.5
    union = int((said | true).sum())
    return float(loss), int((said & true).sum()) / union if union else 1.0


def _figures(values: np.ndarray, seed: int) -> dict[str, float]:
    low, high = mean_interval(values[:, 1], seed, share=True)
    return {**interval(values[:, 0], seed), "iou": float(values[:, 1].mean()), "iou_low": low, "iou_high": high}


def _save(
    spec: MetaRun,
    loaded: Loaded,
    adam: AdamState,
    kinds: Sequence[Kind],
    own: Sequence[str],
    folder: Path,
    figures: Mapping[str, Any],
) -> None:
    """The biases of each kind as an adapter, and their mean."""
    names = [kind.name for kind in kinds]
    sets = {folder / ADAPTERS / name: [name] for name in names} | {folder / ADAPTER: names}
    shutil.rmtree(folder / ADAPTERS, ignore_errors=True)
    for target, owners in sets.items():
        held = mean_of(adam.params, owners, own)
        with torch.no_grad():
            for key, p in trainable(loaded.model).items():
                p.copy_(held[key])
        store.save(
            loaded.model,
            target,
            NAME,
            base=spec.model,
            measured={"steps": spec.steps, "task": "embedding", "meta": dict(figures)},
            base_license=licence_of(spec.model),
        )
