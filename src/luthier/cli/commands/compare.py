"""`luthier compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.cli.output import console, say, table
from luthier.cli.parse import Fitted, Flags, Given, Telling
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from luthier.comparing.plan import Job, Plan
    from luthier.comparing.study import Study

TOLD = ("budget", "held", "tune", "tune_steps", "others", "timing", "until_told", "most_seeds", "hours")
"""Flags that go before what the study says."""


@dataclass(frozen=True)
class Compare(Telling, Fitted):
    """Compare methods side by side: same budget, data and seeds.

    Every run is trained as `luthier train` trains it, tested, and measured for what it cost and what it forgot.
    Started again on the same --out, a study resumes where it was stopped, and new methods and seeds are added to
    it. The table goes to the screen; results.csv, results.json, results.md, results.tex and the report go
    into --out.
    """

    group: ClassVar[str] = "Use"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier compare smollm2-135m train.jsonl --test test.jsonl --methods lora,loreft,full --budget 0.1%",
        "luthier compare path/to/model train.csv --methods base,lora,peft:lora --seeds 5 --steps 200 --out study",
        "luthier compare smollm2-135m train.jsonl --methods lora,dora --tune 8 --tune-steps 50",
        "luthier compare smollm2-135m train.jsonl --test test.jsonl --methods base,icl:k=8,lora",
        "luthier compare smollm2-135m train.jsonl --methods lora,wegeft --until-told 0.02 --hours 8",
        "luthier compare smollm2-135m train.jsonl --methods lora,dora,loreft --seeds 4 --together 8",
        "luthier compare study.toml --out study --jobs 4",
        "luthier compare study.toml --out /shared/study --ray auto",
        "luthier compare study.toml --out study --dry-run",
        "luthier compare study.toml --out study --methods wegeft",
    )

    what: str
    """A model (with DATA), or a study's file: .toml, or the study.json of an earlier one."""
    data: str | None = None
    """Training rows: a file (.jsonl, .csv, .parquet, …), a folder, a hub id or gym:<task>."""
    test: str | None = field(default=None, kw_only=True)
    """Test rows. Default: the data's own test split, or a fifth of the rows, held out."""
    methods: str | None = field(default=None, kw_only=True)
    """Forms, recipes, base (the untouched model), icl:k=8 (the untouched model with 8 training rows before each prompt,
    by BM25; icl:k=8&by=random by chance), peft:lora and peft:dora, joined by commas. Default: base,lora,full.
    A name that is both means the form, with its own settings, as --method does; recipe:lora is the recipe."""
    seeds: str | None = field(default=None, kw_only=True)
    """The number of seeds (3 means 0, 1 and 2), or the seeds themselves, joined by commas. Default: 3."""
    budget: str | None = field(default=None, kw_only=True)
    """What every adapter may cost: a share of the model (0.1%), trainable parameters (500k) or a size on disk (8MB)."""
    held: str | None = field(default=None, kw_only=True)
    """Data with texts ({"text": …} rows) whose loss is measured before and after, for forgetting."""
    tune: int | None = field(default=None, kw_only=True)
    """Trials of a search on the validation part, for each method: learning rate, rank without a budget, positions."""
    tune_steps: int | None = field(default=None, kw_only=True)
    """Training steps of a trial. Default: those of a run."""
    others: int | None = field(default=None, kw_only=True)
    """Rows of each other data set to test on, before and after. Default: 100; 0: no such test."""
    timing: int | None = field(default=None, kw_only=True)
    """Steps timed against the frozen base. Default: 5; 0: no timing."""
    until_told: float | None = field(default=None, kw_only=True)
    """Add seeds until every two methods are told apart, or shown to differ by less than this margin of the score, with
    an error rate of 5% over all looks."""
    most_seeds: int | None = field(default=None, kw_only=True)
    """Seeds at the most, with --until-told. Default: 20."""
    hours: float | None = field(default=None, kw_only=True)
    """Hours after which --until-told adds no seed."""
    together: int = field(default=1, kw_only=True)
    """Train that many runs of one base at once, in passes that they share: less time for short rows, one copy of the
    base. What cannot share them is told and made by itself."""
    jobs: int | None = field(default=None, kw_only=True)
    """Make that many runs side by side, each in a process of its own with its share of the cores (and of several GPUs).
    Each has a copy of the base; seconds and step times are then those of a shared machine, which the records say.
    Default: 1; with --ray the number of nodes."""
    ray: str | None = field(default=None, kw_only=True)
    """Make the runs on a Ray cluster, whose nodes see the same folders: auto, HOST:PORT, ray://HOST:PORT, or local to
    start one on this machine. A run whose node is lost starts again on another."""
    out: str = field(default="study", kw_only=True)
    """The folder of the study."""
    keep_adapters: bool = field(default=False, kw_only=True)
    """Keep the adapters of finished runs."""
    dry_run: bool = field(default=False, kw_only=True)
    """Stop before the first run: check everything, list the runs and what each trains."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.comparing.study import DataSet
        from luthier.training.spec import Training

        return [
            Flags(DataSet, "Data, with a model", ("train", "test", "models", "training")),
            Flags(
                Training, "Training, the same for every method", ("seed", "report_to", "shard", "quantize", "device")
            ),
        ]

    def stopped(self, given: Given) -> str:
        return "the same command goes on where it was stopped"

    def do(self, given: Given) -> dict[str, Any]:
        from luthier.comparing import runner
        from luthier.comparing.report.table import show
        from luthier.core.records import read_json

        study = self.study(given)
        place = runner.place_of(self.jobs, self.ray)
        if self.dry_run:
            from luthier.comparing.plan import checked

            plan = checked(study)
            dry_run(plan)
            return {"dry_run": True, "runs": len(plan.jobs)}
        done = runner.carry_out(study, self.out, True, self.together, place)
        show(done.records, console())
        say(f"{done.folder} holds results.csv, .json, .md and .tex, and {done.report and done.report.name}.")
        methods = read_json(done.folder / "results.json")
        return {"folder": str(done.folder), "report": done.report and str(done.report), "methods": methods}

    def study(self, given: Given) -> Study:
        """The study that arguments, flags and file make."""
        from luthier.comparing.runner import study_of
        from luthier.comparing.study import DataSet
        from luthier.training.spec import Training

        told: dict[str, Any] = {name: getattr(self, name) for name in TOLD if getattr(self, name) is not None}
        if self.methods is not None:
            told["methods"] = words(self.methods)
        if self.seeds is not None:
            told["seeds"] = seeds(self.seeds)
        if given.get(Training):
            told["training"] = dict(given[Training])
        if self.keep_adapters:
            told["keep_adapters"] = True
        return study_of(self.what, self.data, self.test, told, given.get(DataSet))


def words(text: str) -> list[str]:
    """`a, b` as a list."""
    return [word for each in text.split(",") if (word := each.strip())]


def seeds(text: str) -> int | list[int]:
    """`3`, or `0,4,7`; `4,` is the one seed 4."""
    found = words(text)
    if not found or not all(each.isdecimal() for each in found):
        raise LuthierError(f"seeds is {text!r}; expected a number of seeds (3), or several seeds (0,4,7).")
    return int(text) if "," not in text else [int(each) for each in found]


def dry_run(plan: Plan) -> None:
    """The runs by model, data and method, and the settings of each method."""
    from luthier.comparing.runner import taken

    seen: dict[tuple[str, str, str], list[Job]] = {}
    for job in plan.jobs:
        seen.setdefault((job.model, job.data.name, job.method.name), []).append(job)
    rows = [_row(key, jobs) for key, jobs in seen.items()]
    table(("model", "data", "method", "seeds", "trains, about", "budget", "lr", "steps", "notes"), rows)
    say()
    for line in taken(plan):
        say(line)
    say(f"\nDry run: {len(plan.jobs)} runs, nothing was trained or written.")


def _row(key: tuple[str, str, str], jobs: list[Job]) -> tuple:
    job = jobs[0]
    run, method = job.run, job.method
    steps = run.training.steps or f"{run.training.epochs:g} epochs"
    trains = "as measured" if job.trainable is None else f"{job.trainable:,}"
    return (*key, len(jobs), trains, method.budget, f"{run.lr:g}", str(steps), "; ".join(method.notes) or None)
