"""`luthier combine`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.cli.output import say, table
from luthier.cli.parse import Flags, Given, Rewriting, Telling
from luthier.core.errors import LuthierError
from luthier.core.paths import path_of

if TYPE_CHECKING:
    from luthier.combining.tally import Combined


@dataclass(frozen=True)
class Combine(Telling, Rewriting):
    """Combine several adapters or fine-tuned models of one base into one.

    The flags of the method follow from its name: `luthier combine ties --help` shows them. The result is an adapter
    (low-rank changes stay low-rank, sparse ones sparse) or, with --merged, a whole model. Norms by block and how far
    the inputs agree go to the screen, combined.json and combined.png in --out.
    """

    group: ClassVar[str] = "Ship"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier combine task_arithmetic run1 run2 --base smollm2-135m --weights 0.5,0.5 --out both",
        "luthier combine ties run1 run2 path/to/model --base smollm2-135m --density 0.2 --out merged --merged",
        "luthier combine dare run1 run2 --base smollm2-135m --drop 0.9 --then ties --rank 16 --out both",
        "luthier combine portllm run1 --base new-model --source old-model --out ported",
        "luthier combine transfer old-instruct --base new-model --source old-model --out new-instruct --merged",
    )

    method: str
    """The combination; `luthier list combinations` shows all."""
    inputs: tuple[str, ...] = ()
    """Run folders, adapter folders, or folders of models that were fine-tuned from the base."""
    base: str | None = field(default=None, kw_only=True)
    """The base: a folder, a hub id or a name of the catalogue. Default: the name in the first adapter."""
    weights: str | None = field(default=None, kw_only=True)
    """One weight for each input, as 0.5,0.5. Default: 1 each."""
    out: str = field(kw_only=True)
    """The folder to write."""
    merged: bool = field(default=False, kw_only=True)
    """Write the whole model and not an adapter."""
    rank: int | None = field(default=None, kw_only=True)
    """Truncate the change of every matrix to this rank by SVD, and report the error."""
    source: str | None = field(default=None, kw_only=True)
    """The base that the inputs were fitted on, for the methods that move them to another --base."""
    dtype: str = field(default="auto", kw_only=True)
    """Dtype of the base: auto is the model's own; or float32, bfloat16, float16."""
    force: bool = field(default=False, kw_only=True)
    """Combine inputs of other bases, tasks or classes, and bases that are not related."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.core.contracts.component import find

        if not tokens or tokens[0].startswith("-"):
            return []
        found = find("combinations", tokens[0])
        return [Flags(found, f"Settings of {found.name()}")]

    def do(self, given: Given) -> dict[str, Any]:
        from luthier.cli.base import base_of
        from luthier.combining import combine
        from luthier.core.contracts.combination import Combination
        from luthier.core.contracts.component import find
        from luthier.core.files import must_be_free

        must_be_free(self.out)
        if not self.inputs:
            raise LuthierError("nothing to combine: give at least one adapter or model folder.")
        cls = find("combinations", self.method, Combination)
        made = cls.from_dict(dict(given.get(cls, {})))
        weights, first = self._numbers(), self._first_spec()
        if weights is not None and len(weights) != len(self.inputs):
            raise LuthierError(f"{len(weights)} weights for {len(self.inputs)} inputs; give one for each, as 0.5,0.5.")
        task, labels = (None, None) if first is not None else self._served()
        base = base_of(self.base, first, dtype=self.dtype, task=task, labels=labels)
        report = combine(
            made,
            self.inputs,
            base=base.model,
            out=self.out,
            weights=weights,
            source=self.source,
            merged=self.merged,
            rank=self.rank,
            processor=base.processor,
            name=base.name,
            new=base.new_modules,
            force=self.force,
            progress=True,
        )
        show(report)
        return {"folder": str(report.folder), **report.to_dict()}

    def _numbers(self) -> list[float] | None:
        if self.weights is None:
            return None
        try:
            return [float(each) for each in self.weights.split(",")]
        except ValueError:
            raise LuthierError(f"weights are {self.weights!r}; expected numbers such as 0.5,0.5.") from None

    def _first_spec(self) -> dict[str, Any] | None:
        """The spec of the first adapter among the inputs, all of which must be there."""
        from luthier.core.storage.folder import adapter_at, read_adapter

        specs = [read_adapter(each)[1] for each in self.inputs if adapter_at(each)]
        for each in self.inputs:
            if not adapter_at(each) and not (path_of(each) / "config.json").is_file():
                read_adapter(each)  # tells what is near
        return specs[0] if specs else None

    def _served(self) -> tuple[str, list[str] | None]:
        """The task and the classes of the first model, which the base may have no head for."""
        from luthier.models import config_of, task_of_class

        if self.base is None:
            raise LuthierError("whole models do not say what they were fine-tuned from; give --base.")
        config = config_of(self.inputs[0])
        task = task_of_class((config.architectures or [""])[0])
        if "classification" not in task:
            return task, None
        return (task, list(config.id2label.values())) if config.num_labels > 1 else ("regression", None)


def show(report: Combined) -> None:
    """The table by block, and what was written."""
    from luthier.combining.plot import names

    found = report.to_dict()
    several = len(report.inputs) > 1
    rows = [
        (
            "outside" if layer == "-1" else layer,
            *(f"{norm:.4g}" for norm in row["inputs"]),
            f"{row['result']:.4g}",
            *([None if row["agreement"] is None else f"{row['agreement']:.1%}"] if several else []),
        )
        for layer, row in found["blocks"].items()
    ]
    headed = ("block", *names(found["inputs"]), "result", *(["same sign"] if several else []))
    table(headed, rows, f"{found['method']}: norm of the change by block")
    say()
    if several:
        pairs = [found["cosines"][i][j] for i in range(len(report.inputs)) for j in range(i)]
        say(f"Cosine between inputs: {min(pairs):.3f} to {max(pairs):.3f}.")
    if found["gap"]:
        say(f"The bases differ by {found['gap']:.4g} at these weights; the change that moves is {found['norm']:.4g}.")
    if found["truncation"]:
        say(f"Truncation to the rank lost {found['truncation']:.2%} of the change.")
    kept = ", ".join(f"{count:,} tensors {kind}" for kind, count in report.kept.items())
    say(f"{report.folder} holds the result ({kept}), combined.json and combined.png.")
