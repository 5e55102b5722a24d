"""`luthier federate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.cli.output import console, say
from luthier.cli.parse import Flags, Given, Signed, Telling, option
from luthier.cli.stopped import federation_stopped

if TYPE_CHECKING:
    from luthier.core.contracts.aggregation import Aggregation
    from luthier.federating import Federation
    from luthier.training import Run

METHOD, AGGREGATION = "lora", "flora"
"""What is used by default."""


@dataclass(frozen=True)
class Federate(Telling, Signed):
    """Fine-tune a model on data that stay with several clients, by simulation.

    Rows are dealt to clients; in every round each of them trains an adapter on its own rows, as `luthier train` does,
    and the server makes one change of theirs. The settings of training are those of one client in one round. The
    figures of each round go to the screen, metrics.jsonl and federation.png in --out, the sum of all rounds to
    --out/adapter. Started again with --resume, a run resumes after the last client that finished.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "luthier federate smollm2-135m train.jsonl --clients 8 --rounds 5",
        "luthier federate minilm-l6 train.jsonl --ranks 4,8,16 --split dirichlet --concentration 0.3",
        "luthier federate minilm-l6 train.jsonl --aggregation fedit --rank 8 --epochs 2 --lr 1e-3 --out averaged",
        "luthier federate minilm-l6 train.jsonl --split column --column hospital --dry-run",
        "luthier federate minilm-l6 train.jsonl --rounds 10 --out federation --resume",
    )

    model: str
    """A folder, a hub id, a .gguf file or a name of the catalogue (`luthier models`)."""
    data: str
    """A file (.jsonl, .csv, .parquet, …), a folder or a hub id: the rows of all clients."""
    aggregation: str = field(default=AGGREGATION, kw_only=True)
    """The rule by which the server combines the clients' changes; `luthier list aggregations` shows all."""
    method: str = field(default=METHOD, kw_only=True)
    """The form that clients train: one whose change is s B A. It has its own settings, never those of a recipe of the
    same name."""
    out: str = field(default="federation", kw_only=True)
    """The run folder to write."""
    resume: bool = field(default=False, kw_only=True)
    """Resume after the last client that finished in --out; --rounds may be larger than before."""
    overwrite: bool = field(default=False, kw_only=True)
    """Start again even if --out holds a run."""
    dry_run: bool = field(default=False, kw_only=True)
    """Stop before the weights are loaded: check everything, show who takes part with which rows."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.cli.chosen import component_flags
        from luthier.core.contracts.component import find
        from luthier.federating.spec import APART, REFUSED, UNREAD, Federation
        from luthier.training import Run, Training

        form, method = option(tokens, "--method") or METHOD, option(tokens, "--aggregation") or AGGREGATION
        parts = [find("aggregations", method), find("forms", form)]
        return [
            Flags(Federation, "Federation"),
            Flags(Run, "Run", ("form", "training", "model", "data", "name", "out", *APART)),
            Flags(Training, "Training of a client in a round", (*UNREAD, *REFUSED)),
            *(Flags(each, f"Settings of {each.name()}") for each in parts),
            *component_flags(tokens, but=APART),
        ]

    def do(self, given: Given) -> dict[str, Any]:
        from luthier.cli.base import next_step
        from luthier.federating.run import carry_out

        run, method, federation = self.resolved(given)
        if self.dry_run:
            dry_run(run, method, federation)
            return {"dry_run": True, "rounds": federation.rounds, "clients": federation.clients}
        done = carry_out(run, method, federation, resume=self.resume, overwrite=self.overwrite)
        say(f"{done.folder} holds the run, {done.adapter} the adapter (rank up to {max(done.ranks.values())}).")
        told = run.columns, run.skip_bad_rows, run.trust_remote_code
        say(next_step(self.model, run.eval_data or self.data, done.adapter, *told))
        return {"folder": str(done.folder), "adapter": str(done.adapter), "rounds": done.rounds, "ranks": done.ranks}

    def stopped(self, given: Given) -> str:
        return federation_stopped(self.out)

    def resolved(self, given: Given) -> tuple[Run, Aggregation, Federation]:
        """Returns what the flags describe."""
        from luthier.cli.chosen import choices
        from luthier.core.contracts.aggregation import Aggregation
        from luthier.core.contracts.component import find
        from luthier.core.contracts.form import Form
        from luthier.federating.spec import Federation
        from luthier.methods.choices import CHOICES
        from luthier.training import Run, Training

        cls = find("aggregations", self.aggregation, Aggregation)
        run = Run(
            self.model,
            self.data,
            out=self.out,
            training=Training(**{"epochs": 1.0, **given.get(Training, {})}),
            **choices(find("forms", self.method, Form), given, beside=(cls,)),
            **{name: value for name, value in given.get(Run, {}).items() if name not in CHOICES},
        )
        return run, cls.from_dict(dict(given.get(cls, {}))), Federation(**given.get(Federation, {}))


def dry_run(run: Run, method: Aggregation, federation: Federation) -> None:
    """Who takes part, with which rows."""
    from luthier.federating.prepare import overview, planned
    from luthier.training.progress import quiet

    with quiet():
        plan = planned(run, method, federation)
    say(plan.title)
    console().print(overview(plan))
    held = len(plan.prepared.evaluation)
    say(f"\n{federation.rounds} rounds; the server is measured on {held:,} rows.")
    say("Dry run: nothing was trained or written.")
