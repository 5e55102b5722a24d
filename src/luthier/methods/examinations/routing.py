"""Routing: which experts the tokens of rows are sent to, in any adapter with a router."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.core.adapters.attach import find_state
from luthier.core.adapters.control import watched
from luthier.core.contracts.examination import Examination, Pair, Report
from luthier.core.contracts.router import Route, Routed, RoutedBatch
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class Routing(Examination):
    """imbalance = 1 - H(load) / log E over the E experts of a site, load_e = mean over real tokens of w_e

    0 where every expert bears the same, 1 where one bears all. Beside it, of each site: the largest and the smallest
    load, how many experts the load is worth (exp H), how sure the router is of a single token (the mean of 1 - H(w) /
    log E), and every expert's load. Experts that all tokens get alike have a balanced load and an unsure router: there
    is nothing that the router tells apart. The null is uniform routing. Padding does not count; with several data sets
    the loads are those of all rows together, and `apart` says how far the sets are apart: half the sum of
    |load - load'| of the two that differ most.
    """

    paper = "load and entropy as in Fedus et al. 2021 (Switch Transformers), arXiv 2101.03961"
    reads = True

    def measure(self, pair):
        with pair.after() as model:
            state = find_state(model)
            routed = [each for each in (state.components if state else []) if isinstance(each.form, Routed)]
            if not routed:
                raise LuthierError("no adapter of this model has a router, so there is no routing to examine.")
            found = {name: self._loads(pair, model, name, batches) for name, batches in pair.data.items()}
        return self._report(found)

    def _loads(self, pair: Pair, model: Any, name: str, batches: Sequence[Mapping[str, Any]]) -> dict[str, Site]:
        device, sites = next(model.parameters()).device, {}
        for batch in pair.watch(f"routing {len(batches):,} batches of {name}", batches):
            given = {key: value.to(device) for key, value in batch.items() if isinstance(value, Tensor)}
            mask = given.get("attention_mask")
            with torch.no_grad(), watched(model) as routes:
                model(**given)
            for route in routes:
                _add(sites, route, RoutedBatch(None if mask is None else mask.bool()))
        return sites

    def _report(self, found: Mapping[str, Mapping[str, Site]]) -> Report:
        together = {path: _sum([sites[path] for sites in found.values() if path in sites]) for path in _paths(found)}
        places = {path: site.numbers() for path, site in together.items()}
        for path, numbers in places.items():
            loads = [sites[path].load() for sites in found.values() if path in sites]
            numbers["apart"] = max((float((a - b).abs().sum() / 2) for a in loads for b in loads), default=0.0)
        null = {path: uniform(numbers) for path, numbers in places.items()}
        shared = ("imbalance", "largest", "smallest", "worth", "sure", "apart")
        summary = {key: sum(each[key] for each in places.values()) / len(places) for key in shared}
        nothing = {key: sum(each[key] for each in null.values()) / len(null) for key in shared}
        worst = max(places, key=lambda path: places[path]["imbalance"])
        experts = max(site.total.numel() for site in together.values())
        return Report(
            effect=summary["imbalance"],
            column="imbalance",
            places=places,
            null=null,
            layers={path: site.layer for path, site in together.items()},
            summary=summary,
            null_summary=nothing,
            baseline="uniform routing",
            verdict=f"The load of {experts} experts is worth {summary['worth']:.2g} of them on average; it is least "
            f"even at {worst}, where the busiest bears {places[worst]['largest']:.0%}. The router is sure of a single "
            f"token by {summary['sure']:.0%}.",
        )


@dataclass
class Site:
    """Sums over the tokens of a site."""

    total: Tensor
    """The weights of the experts, [experts]."""
    sure: float
    """1 - H(w) / log E of each token."""
    tokens: int
    layer: int | None

    def load(self) -> Tensor:
        """Returns each expert's share of the weight."""
        return self.total / max(1, self.tokens)

    def numbers(self) -> dict[str, float]:
        """Returns the numbers of the site."""
        load = self.load()
        spread = float(entropy(load))
        most = math.log(load.numel()) or 1.0
        experts = {f"expert {i}": float(value) for i, value in enumerate(load)}
        return {
            "imbalance": max(0.0, 1 - spread / most) if load.numel() > 1 else 0.0,
            "largest": float(load.max()),
            "smallest": float(load.min()),
            "worth": math.exp(spread),
            "sure": self.sure / max(1, self.tokens),
        } | experts


def entropy(weights: Tensor) -> Tensor:
    """Returns H, in nats, over the last axis."""
    return -torch.special.xlogy(weights, weights).sum(-1)


def uniform(numbers: Mapping[str, float]) -> dict[str, float]:
    """Returns the same numbers under uniform routing."""
    experts = sum(key.startswith("expert ") for key in numbers)
    even = {"imbalance": 0.0, "worth": float(experts), "sure": 0.0, "apart": 0.0}
    return {key: even.get(key, 1 / experts) for key in numbers}


def _add(sites: dict[str, Site], route: Route, batch: RoutedBatch) -> None:
    logits = route.logits if route.form.by_task else batch.tokens(route.logits)
    weights = route.form.weights(logits).double().flatten(0, -2).cpu()
    sure = 1 - entropy(weights) / (math.log(weights.shape[-1]) or 1.0)
    site = Site(weights.sum(0), float(sure.sum()), len(weights), route.layer)
    sites[route.path] = _sum([sites[route.path], site]) if route.path in sites else site


def _sum(sites: Sequence[Site]) -> Site:
    total = torch.stack([site.total for site in sites]).sum(0)
    return Site(total, sum(site.sure for site in sites), sum(site.tokens for site in sites), sites[0].layer)


def _paths(found: Mapping[str, Mapping[str, Site]]) -> list[str]:
    return list(dict.fromkeys(path for sites in found.values() for path in sites))
