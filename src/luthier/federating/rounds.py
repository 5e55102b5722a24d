"""The rounds of a federated run in one process: the clients take turns, then the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import set_seed

from luthier.federating import client, server
from luthier.federating import folder as folders
from luthier.federating.card import card
from luthier.federating.change import Change
from luthier.federating.command import command
from luthier.federating.prepare import Plan
from luthier.federating.progress import Shown, shown
from luthier.federating.result import Federated
from luthier.models import Loaded
from luthier.training.folder import base_of
from luthier.training.session import load


def all_rounds(plan: Plan, folder: Path, console: Console) -> Federated:
    """Round by round, from where the folder stands, to the adapter."""
    run = plan.run
    set_seed(run.training.seed)  # heads that are new
    loaded = load(run, plan.prepared)
    folders.same_base(folder, base_of(loaded.model))
    found = folders.read_state(folder)
    if found is None:
        held = server.initial(run, plan.method, plan.prepared, loaded, plan.ranks)
        lines = [{"round": 0, **server.measured(run, plan.prepared, loaded, held)}]
        folders.write_state(folder, held, lines, plan.title)
    else:
        held, lines = found
    left = range(lines[-1]["round"] + 1, plan.federation.rounds + 1)
    with shown(console, sum(len(plan.taking_part(number)) for number in left), lines) as bar:
        for number in left:
            held, line = _round(plan, folder, loaded, held, number, bar)
            lines = [*lines, line]
            folders.write_state(folder, held, lines, plan.title)
            bar.round(line)
    told = {"federated": {**plan.to_dict()["federation"], "aggregation": plan.method.name(), "rows": plan.rows}}
    text = card(plan, lines, held, command(run, plan.method, plan.federation))
    (folder / folders.CARD).write_text(text, encoding="utf-8")
    adapter = server.save(run, plan.prepared, loaded, held, folder / folders.ADAPTER, told, text)
    return Federated(folder, adapter, lines, held.ranks)


def _round(
    plan: Plan, folder: Path, loaded: Loaded, held: Change, number: int, bar: Shown
) -> tuple[Change, dict[str, Any]]:
    """(what the server holds, the line of the round) after the round `number`."""
    sent = {}
    for each in plan.taking_part(number):
        known = folders.kept(folder, number, each)
        if known is None:
            own = client.rows_of(plan.prepared, plan.parts[each])
            seed = client.seed_of(plan.run, number, each, plan.clients)
            known = client.fit(plan.run, plan.method, own, loaded, held, plan.ranks[each], seed)
            folders.keep(folder, number, each, known)
        sent[each] = known
        bar.client(number, each, known.loss)
    rows = [each.rows for each in sent.values()]
    after = server.aggregated(plan.method, held, [each.change for each in sent.values()], rows)
    line = {
        "round": number,
        "train_loss": sum(each.rows * each.loss for each in sent.values()) / sum(rows),
        **server.measured(plan.run, plan.prepared, loaded, after),
        "clients": {str(one): each.loss for one, each in sent.items()},
        "rank": max(after.ranks.values()),
        "sent_up": sum(each.change.numbers for each in sent.values()),
        "sent_down": held.numbers * len(sent),
        "seconds": round(sum(each.seconds for each in sent.values()), 3),
    }
    return after, line
