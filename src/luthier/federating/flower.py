"""Flower: the clients and the server of a federated run as its ClientApp and ServerApp, for clients that are apart.

A node has rows of its own and a base that it loads itself; what travels are the factors of changes, as arrays. Flower
brings the transport, the nodes and their identities. The training of a client is `luthier.federating.client.fit`, what
the server makes of the changes an aggregation, both the same as in `luthier.federate`.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from luthier.core.contracts.aggregation import Aggregation
from luthier.core.errors import LuthierError
from luthier.federating import folder as folders
from luthier.federating import server
from luthier.federating.change import Change
from luthier.federating.client import fit, seed_of
from luthier.federating.prepare import Plan
from luthier.federating.spec import Federation, check_run
from luthier.models import Loaded
from luthier.training.prepare import Prepared, prepare
from luthier.training.progress import quiet
from luthier.training.session import load
from luthier.training.spec import Run

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
except ImportError as error:
    raise LuthierError(f"needs flwr ({error}): pip install 'luthier[federated]'") from error

ARRAYS, METRICS, CONFIG = "arrays", "metrics", "config"
HOW = "flwr run"
ROWS, LOSS, CLIENT = "num-examples", "train-loss", "client"


@dataclass(frozen=True)
class Member:
    """One node's side of a federation."""

    run: Run
    prepared: Prepared
    """The rows of the node."""
    loaded: Loaded
    rank: int
    client: int = 0
    """Its number, from 0: with the run's seed, it fixes what the node draws."""
    clients: int = 1


def own(run: Run, labels: list[str] | None = None, *, client: int = 0, clients: int = 1) -> Member:
    """The member with the rows of `run.data` and the rank of `run.form`; heads are those of `labels`, all clients' own.

    Raises `LuthierError` for classes that are not among `labels`, and for what no client could train.
    """
    check_run(run)
    prepared, loaded = load_shared(run, labels)
    return Member(run, prepared, loaded, int(getattr(run.form, "rank", 0)), client, clients)


def load_shared(run: Run, labels: list[str] | None) -> tuple[Prepared, Loaded]:
    """Loads all rows of `run.data`, and the base with the classes `labels`."""
    with quiet():
        whole = dataclasses.replace(run.training, eval_fraction=0.0)
        prepared = prepare(dataclasses.replace(run, training=whole), shared=labels is not None)
        prepared = prepared if labels is None else renumbered(prepared, labels)
        set_seed(run.training.seed)  # heads that are new
        return prepared, load(run, prepared)


def renumbered(prepared: Prepared, labels: list[str]) -> Prepared:
    """Returns the rows with the class indices of `labels`: a node need not have rows of all classes."""
    known = prepared.examples.labels or []
    strange = sorted(set(known) - set(labels))
    if strange or not known:
        what = f"classes that the others lack: {', '.join(strange)}" if known else "no classes"
        raise LuthierError(f"{prepared.examples.source} has {what}; the federation's are {', '.join(labels)}.")
    rows = [row | {"labels": labels.index(known[row["labels"]])} for row in prepared.train]
    return dataclasses.replace(prepared, train=rows, examples=dataclasses.replace(prepared.examples, labels=labels))


def arrays_of(change: Change) -> ArrayRecord:
    """Returns a change as a message holds it: numpy's own format, nothing pickled."""
    return ArrayRecord({name: Array(tensor.cpu().numpy()) for name, tensor in change.tensors().items()})


def change_of(arrays: ArrayRecord) -> Change:
    """Returns the inverse of `arrays_of`; raises for what is not a change."""
    return Change.of({name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()})


def number(record: ConfigRecord | MetricRecord, key: str) -> float:
    """Returns a number that a message tells; raises for anything else."""
    told = record[key]
    if not isinstance(told, int | float):
        raise LuthierError(f"a message of the federation says {key} = {told!r}; expected a number.")
    return told


def client_app(member_of: Callable[[Context], Member], method: Aggregation) -> ClientApp:
    """Returns the app of a node; `member_of` is asked in every round, so it should keep what it has made."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config, member = message.content.config_records[CONFIG], member_of(context)
        if config["aggregation"] != method.name():
            raise LuthierError(f"the server aggregates by {config['aggregation']}, this client by {method.name()}.")
        held = change_of(message.content.array_records[ARRAYS])
        seed = seed_of(member.run, int(number(config, "server-round")), member.client, member.clients)
        with quiet():
            sent = fit(member.run, method, member.prepared, member.loaded, held, member.rank, seed)
        metrics = MetricRecord({ROWS: sent.rows, LOSS: sent.loss, CLIENT: member.client})
        return Message(RecordDict({ARRAYS: arrays_of(sent.change), METRICS: metrics}), reply_to=message)

    return app


class Aggregating(FedAvg):
    """Flower's strategy with an aggregation of Luthier's in the place of the mean."""

    def __init__(self, method: Aggregation, fraction: float = 1.0, clients: int = 2) -> None:
        """`fraction` of the nodes train in a round, which waits until there are `clients` of them."""
        super().__init__(
            fraction_train=fraction,
            fraction_evaluate=0.0,
            min_train_nodes=max(1, int(fraction * clients)),
            min_available_nodes=clients,
        )
        self.method, self._held = method, Change()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sends what the server holds to the nodes of a round."""
        self._held = change_of(arrays)
        config["aggregation"] = self.method.name()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What the server holds after a round; nodes that failed are left out, and a round of none changes nothing."""
        given = [reply.content for reply in replies if not reply.has_error()]
        if not given:
            return None, None
        given.sort(key=lambda content: number(content.metric_records[METRICS], CLIENT))
        rows = [int(number(content.metric_records[METRICS], ROWS)) for content in given]
        losses = [number(content.metric_records[METRICS], LOSS) for content in given]
        changes = [change_of(content.array_records[ARRAYS]) for content in given]
        after = server.aggregated(self.method, self._held, changes, rows)
        loss = sum(n * each for n, each in zip(rows, losses, strict=True)) / sum(rows)
        return arrays_of(after), MetricRecord({LOSS: loss, "clients": len(given)})


def server_app(
    run: Run,
    method: Aggregation,
    federation: Federation,
    labels: list[str] | None = None,
) -> ServerApp:
    """The app of the server: rounds as `federation` says, measured on all rows of `run.data`, saved in `run.out`.

    Of the federation it needs rounds, clients (for how many a round waits), ranks (the largest) and fraction.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, run, method, federation, labels)

    return app


def serve(grid: Grid, run: Run, method: Aggregation, federation: Federation, labels: list[str] | None) -> Path:
    """Returns the rounds over a grid of nodes; returns the folder of the adapter."""
    from luthier.federating.card import card

    check_run(run)
    folder = folders.claim(run.out, resume=False, overwrite=False)
    prepared, loaded = load_shared(run, labels)
    prepared = dataclasses.replace(prepared, evaluation=prepared.train, held=prepared.examples)
    plan = Plan(run, method, federation, prepared, [[]] * (federation.clients or 1))
    folders.begin(folder, {**plan.to_dict(), "command": HOW}, overwrite=False)
    lines: list[dict[str, Any]] = []

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        held = change_of(arrays)
        found = server.measured(run, prepared, loaded, held)
        lines.append({"round": number, **found})
        folders.write_state(folder, held, lines, plan.title)
        return MetricRecord(dict(found))

    with quiet():
        start = server.initial(run, method, prepared, loaded, plan.ranks)
        strategy = Aggregating(method, federation.fraction, plan.clients)
        strategy.start(grid, arrays_of(start), federation.rounds, evaluate_fn=evaluate)
        held, rounds = folders.read_state(folder) or (start, lines)
        text = card(plan, rounds, held, HOW)
        (folder / folders.CARD).write_text(text, encoding="utf-8")
        told = {"federated": {**federation.to_dict(), "aggregation": method.name()}}
        return server.save(run, prepared, loaded, held, folder / folders.ADAPTER, told, text)
