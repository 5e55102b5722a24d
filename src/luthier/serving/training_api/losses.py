"""The losses of the protocol: sums over tokens of functions of their log-probabilities.

With l_t = log p(y_t) by the adapter, q_t = log p(y_t) by whoever sampled, A_t the advantage and r_t = exp(l_t - q_t).
The equations are those of https://tinker-docs.thinkingmachines.ai/tinker/losses; nothing is divided by anything.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import LuthierError

Inputs = Mapping[str, Tensor]
"""What a datum brings beside its tokens, by name, [T] or [T, K] each."""
LOW, HIGH = "clip_low_threshold", "clip_high_threshold"
MASK = "sequence_ratio_mask"


@dataclass(frozen=True)
class LossFunction:
    """A loss by its name in the protocol."""

    needs: tuple[str, ...]
    """The inputs beside target_tokens."""
    value: Callable[[Tensor, Inputs, Mapping[str, float]], Tensor]
    """From (l, inputs, settings) to the loss of one datum."""
    settings: Mapping[str, float]
    """Settings with their defaults."""
    takes: tuple[str, ...] = ()
    """Inputs that may come, and stand for settings token by token."""
    wrong: Callable[[Inputs], str] = lambda given: ""
    """What is wrong with the inputs of a datum taken together; nothing where they fit."""


def cross_entropy(logs: Tensor, given: Inputs, settings: Mapping[str, float]) -> Tensor:
    """Returns L = - Σ_t w_t l_t, with weights of any sign."""
    return -(logs * given["weights"]).sum()


def importance_sampling(logs: Tensor, given: Inputs, settings: Mapping[str, float]) -> Tensor:
    """Returns L = - Σ_t r_t A_t: importance sampling."""
    return -(_ratio(logs, given) * given["advantages"]).sum()


def ppo(logs: Tensor, given: Inputs, settings: Mapping[str, float]) -> Tensor:
    """Returns L = - Σ_t min(r_t A_t, clip(r_t, low, high) A_t)."""
    ratio, gain = _ratio(logs, given), given["advantages"]
    return -torch.minimum(ratio * gain, _clipped(ratio, given, settings) * gain).sum()


def cispo(logs: Tensor, given: Inputs, settings: Mapping[str, float]) -> Tensor:
    """Returns L = - Σ_t stop-gradient(clip(r_t, low, high)) A_t l_t."""
    return -(_clipped(_ratio(logs, given), given, settings).detach() * given["advantages"] * logs).sum()


def dro(logs: Tensor, given: Inputs, settings: Mapping[str, float]) -> Tensor:
    """Returns L = - Σ_t (l_t A_t - β/2 (l_t - q_t)²), with β from the settings."""
    return -(logs * given["advantages"] - 0.5 * settings["beta"] * (logs - given["logprobs"]) ** 2).sum()


def gspo(logs: Tensor, given: Inputs, settings: Mapping[str, float]) -> Tensor:
    """Returns L = - Σ_t min(s_t A_t, clip(s_t, low, high) A_t), GSPO's token-level variant.

    s_t is s = exp(mean_t (l_t - q_t)) over the tokens of `sequence_ratio_mask`, with the gradient of l_t alone. Without
    a mask these are the tokens with an advantage; a datum without any has no loss.
    """
    gain = given["advantages"]
    inside = given.get(MASK, gain).ne(0)
    if not bool(inside.any()):
        return (logs * 0).sum()
    held = logs.detach()
    ratio = ((held - given["logprobs"])[inside].mean() + logs - held).exp()
    return -torch.minimum(ratio * gain, ratio.clamp(settings[LOW], settings[HIGH]) * gain).sum()


def _masked_away(given: Inputs) -> str:
    """There is no mean over no tokens: a datum with advantages would be left out without a word."""
    if MASK in given and not bool(given[MASK].ne(0).any()) and bool(given["advantages"].ne(0).any()):
        return f"{MASK} is 0 at every token and advantages are not; expected 1 at the tokens that were sampled."
    return ""


def _ratio(logs: Tensor, given: Inputs) -> Tensor:
    return (logs - given["logprobs"]).exp()


def _clipped(ratio: Tensor, given: Inputs, settings: Mapping[str, float]) -> Tensor:
    """The ratio within its bounds, which a datum may state token by token."""
    low, high = (given.get(key, ratio.new_tensor(settings[key])) for key in (LOW, HIGH))
    return torch.minimum(torch.maximum(ratio, low), high)


POLICY = ("logprobs", "advantages")
CLIP = {LOW: 0.8, HIGH: 1.2}
LOSSES: Mapping[str, LossFunction] = {
    "cross_entropy": LossFunction(("weights",), cross_entropy, {}),
    "importance_sampling": LossFunction(POLICY, importance_sampling, {}),
    "ppo": LossFunction(POLICY, ppo, CLIP, (LOW, HIGH)),
    "cispo": LossFunction(POLICY, cispo, CLIP, (LOW, HIGH)),
    "dro": LossFunction(POLICY, dro, {"beta": 0.05}),
    "gspo": LossFunction(POLICY, gspo, {LOW: 1 - 3e-4, HIGH: 1 + 4e-4}, (MASK,), _masked_away),
}
REFUSED = {
    "stable_reinforce": "it needs what the sampler records of its own stability, and its equation is not published",
    "custom": "losses are not run by their graph here; forward_backward_custom runs them on the client's side",
}
"""Losses that the client knows and this server does not run, and why."""


def loss_named(name: Any, config: Mapping[str, Any]) -> tuple[LossFunction, dict[str, float]]:
    """Returns a loss with its settings; raises `LuthierError` for what it does not have."""
    if not isinstance(name, str):
        raise LuthierError(f"loss_fn is {name!r:.80}; expected one of {', '.join(LOSSES)}.")
    if name in REFUSED:
        raise LuthierError(f"loss_fn {name!r} is refused: {REFUSED[name]}.")
    if name not in LOSSES:
        raise LuthierError(f"loss_fn is {name!r}; expected one of {', '.join(LOSSES)}.")
    found = LOSSES[name]
    for key, value in config.items():
        if key not in found.settings:
            known = ", ".join(found.settings) or "none"
            raise LuthierError(f"loss_fn_config: {name} has no setting {key!r}; it has {known}.")
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
            raise LuthierError(f"loss_fn_config: {key} is {value!r:.80}; expected a finite number.")
    return found, {**found.settings, **{key: float(value) for key, value in config.items()}}


def total(loss: LossFunction, settings: Mapping[str, float], data: Sequence[Inputs]) -> Callable[..., Tensor]:
    """Returns the loss of a batch as a function of the log-probabilities of its data, [T] or [T, K] each."""

    def value(log_probs: Sequence[Tensor]) -> Tensor:
        parts = []
        for logs, given in zip(log_probs, data, strict=True):
            there = {key: each.to(logs.device) for key, each in given.items()}
            parts.append(loss.value(logs, there, settings))
        return torch.stack(parts).sum()

    return value
