"""`luthier run`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.cli.output import console, say, say_json, table
from luthier.cli.parse import Fitted, Given

if TYPE_CHECKING:
    from luthier.evaluating.front import Front
    from luthier.training.stages import Staged, StagePlan


@dataclass(frozen=True)
class Run(Fitted):
    """Train in stages that one file describes, each going on with the adapter of the one before.

    Each stage is a run folder like any other. All of them are checked before the first one starts. With [measure], the
    base and every checkpoint are scored on the task and on what must not be lost, and dominated ones are flagged.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "luthier run plan.toml",
        "luthier run plan.toml --dry-run",
        "luthier run plan.toml --resume",
        "luthier run plan.toml --out second --json",
    )

    plan: str
    """A .toml or .yaml file with a [[stage]] for each run."""
    out: str | None = field(default=None, kw_only=True)
    """The folder of the stages. Default: what the plan says."""
    resume: bool = field(default=False, kw_only=True)
    """Go on with the plan in --out, within a stage or between two."""
    overwrite: bool = field(default=False, kw_only=True)
    """Start again even if --out holds a plan."""
    dry_run: bool = field(default=False, kw_only=True)
    """Check every stage, and train nothing."""
    json: bool = field(default=False, kw_only=True)
    """Print the stages and their checkpoints as JSON."""

    def run(self, given: Given) -> None:
        from luthier.training.stages import read_plan, run_plan

        plan = read_plan(self.plan, self.out)
        if self.dry_run:
            self._check(plan)
            return
        done = run_plan(plan, resume=self.resume, overwrite=self.overwrite, progress=not self.json, told=self._told)
        front = self._front(plan)
        if self.json:
            found = {"folder": str(done.folder), "stages": [_plain(asdict(each)) for each in done.stages]}
            say_json(found | ({} if front is None else {"pareto": front.to_dict()}))
            return
        _show(done, front)

    def _told(self, line: str) -> None:
        console(stderr=True).print(line, markup=False, soft_wrap=True)

    def _check(self, plan: StagePlan) -> None:
        from luthier.training.progress import quiet
        from luthier.training.stages.work import check_plan, claim

        claim(plan, self.resume, self.overwrite)
        with quiet():
            checked = check_plan(plan)
        stages = [{"name": each.name, "folder": str(each.folder)} for each in checked.stages]
        if self.json:
            say_json({"stages": stages})
            return
        table(("stage", "run folder"), [list(each.values()) for each in stages])
        say("Dry run: every stage was checked, nothing was trained or written.")

    def _front(self, plan: StagePlan) -> Front | None:
        from luthier.evaluating.pareto import pareto

        if plan.measured is None:
            return None
        return pareto(plan.folder, plan.measured, progress=not self.json, told=self._told)

    def stopped(self, given: Given) -> str:
        return f"Stopped. Go on with `luthier run {self.plan} --resume`."


def _plain(stage: dict[str, Any]) -> dict[str, Any]:
    return stage | {"folder": str(stage["folder"])}


def _show(done: Staged, front: Front | None) -> None:
    shown = [
        (each.name, each.steps, *(None if x is None else f"{x:.4f}" for x in (each.loss, each.eval_loss)), each.folder)
        for each in done.stages
    ]
    table(("stage", "steps", "loss", "evaluation loss", "run folder"), shown)
    if front is not None:
        say()
        rows = [
            (point.name, f"{point.task:.4f}", f"{point.general:.4f}", point.dominated_by or "on the front")
            for point in front.points
        ]
        table(("checkpoint", f"task: {front.task_metric}", f"general: {front.general_metric}", "dominated by"), rows)
        say(f"{done.folder / 'pareto.png'} shows them, {done.folder / 'pareto.json'} has the numbers.")
    say(f"{done.adapter} holds the adapter of the last stage.")
