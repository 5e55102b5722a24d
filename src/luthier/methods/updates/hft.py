"""HFT: half of the parameters train, by category."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass

from luthier.core.contracts.update import ParameterGroup, TrainingPlan, Update
from luthier.methods.updates._layers import check_layered


@dataclass(frozen=True)
class HFT(Update):
    """active = in each block half of the attention's matrices, of the feed-forward's, and of the norms

    Of an odd number, such as 3 feed-forward matrices, one more and one less train in turn from block to block. A
    matrix takes its bias with it. Another half is drawn for each stage, which is a run unless `interval` says
    otherwise. The paper's figure shows the three categories; what stands outside the blocks has none, and trains or
    not as `outside` says.
    """

    paper = "Hui et al. 2025 (ACL), arXiv 2404.18466"
    family = "selective"

    interval: int | None = None
    """Steps between draws. Default: one draw for the run."""
    outside: bool = True
    """Embeddings, final norm and head train."""

    @property
    def changes(self):
        return self.interval is not None

    def check(self):
        self.within("interval", 1)

    def check_form(self, form, sites):
        check_layered(self, form, sites)

    def active(self, plan, step):
        stage = 0 if self.interval is None else step // self.interval
        chosen = halves(plan, random.Random(f"hft {plan.seed} {stage}"))
        outer = {0, plan.depth + 1} if self.outside else set()
        return [group for group in plan.groups if group.level in outer or owner(group) in chosen]


def halves(plan: TrainingPlan, draw: random.Random) -> set[str]:
    """The modules of the blocks that train: half of each block's and category's, and over the blocks half of all."""
    units: dict[tuple[str, int], dict[str, None]] = defaultdict(dict)
    matrices = {owner(group) for group in plan.groups if group.site.d_out > 1}
    for group in plan.groups:
        if 1 <= group.level <= plan.depth:
            units[category(group, matrices), group.level][owner(group)] = None
    extra = {kind: draw.random() < 0.5 for kind in sorted({kind for kind, _ in units})}
    chosen: set[str] = set()
    for (kind, _), members in sorted(units.items()):
        half, odd = divmod(len(members), 2)
        chosen |= set(draw.sample(sorted(members), half + (odd and extra[kind])))
        extra[kind] ^= bool(odd)
    return chosen


def owner(group: ParameterGroup) -> str:
    """Returns the module that a tensor belongs to."""
    return group.site.module


def category(group: ParameterGroup, matrices: set[str]) -> str:
    """attention, feed-forward or norm, by what the module holds and where it lies in its block."""
    if owner(group) not in matrices:
        return "norm"
    inside = owner(group).split(".")
    return "attention" if any("att" in part.lower() for part in inside[:-1]) else "feed-forward"
