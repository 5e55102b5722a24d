"""The card of a federated run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.storage.card import front, usage
from luthier.models import licence_of
from luthier.training.report import span

if TYPE_CHECKING:
    from luthier.federating.change import Change
    from luthier.federating.prepare import Plan

SHOWN = ("train_loss", "eval_loss", "accuracy", "mcc", "pearson", "mse")


def card(plan: Plan, lines: Sequence[Mapping[str, Any]], held: Change, how: str) -> str:
    """Markdown: equation, who took part, figures by round, and `how` to repeat the run."""
    run, method, columns = plan.run, plan.method, [name for name in SHOWN if any(name in line for line in lines)]
    known, task = licence_of(run.model), plan.prepared.task
    told = {
        "base": f"`{run.model}`" + (f", licence {known}" if known else ", licence not known: ask its makers"),
        "form": f"{run.form.name()} at `{run.where or run.form.where}`",
        "clients": f"{plan.clients}, ranks {span(plan.ranks)}" + (_dealt(plan) if any(plan.rows) else ""),
        "rounds": str(lines[-1]["round"]),
        "adapter": f"the sum of all rounds, rank {span(list(held.ranks.values()))}",
        "evaluated on": f"{len(plan.prepared.evaluation):,} rows",
    }
    table = [("round", *columns), ("---",) * (len(columns) + 1)]
    table += [(str(line["round"]), *(f"{line[c]:.4f}" if c in line else "" for c in columns)) for line in lines]
    return "\n".join(
        [
            front(run.model, [run.form.name(), "federated"], licence=run.license or known, task=task, data=run.data),
            f"# {run.model} fitted to {run.data} by {plan.clients} clients with {method.name()}\n",
            f"**{method.equation()}**\n\n{method.paper}\n",
            *("| | |", "|---|---|"),
            *(f"| {name} | {text} |" for name, text in told.items()),
            "",
            *(f"| {' | '.join(row)} |" for row in table),
            f"\n    {how}\n",
            usage(run.model, task, plan.prepared.examples.labels),
        ]
    )


def _dealt(plan: Plan) -> str:
    return f", rows dealt by {plan.federation.split}: {span(plan.rows)} each"
