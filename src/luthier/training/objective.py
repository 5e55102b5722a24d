"""The objective of a run that states none: the rows choose it.

Pairs say by their columns that one answer goes before the other. A label beside an answer may say anything, so that
answers which it calls bad are refused unless somebody asks for `kto`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier import data
from luthier.core.contracts.objective import Objective
from luthier.methods.choices import usual
from luthier.methods.objectives.dpo import DPO
from luthier.methods.objectives.info_nce import InfoNCE
from luthier.methods.objectives.sft import SFT
from luthier.training.spec import Run

USUAL: dict[str, type[Objective]] = {"answers": SFT, "pairs": DPO, "judged": SFT, "texts": InfoNCE}
"""The usual objective by what rows hold, as `data.kind_of` names it."""


def objective_for(source: str, columns: str | None = None) -> Objective:
    """Returns the usual objective for rows: supervised fine-tuning, unless they are pairs, or texts for vectors."""
    return USUAL[data.kind_of_rows(source, columns)]()


def completed(stated: Mapping[str, Any]) -> Run:
    """Returns the run of these fields; where none of them is an objective, the rows choose it."""
    if "objective" in stated:
        return Run(**stated)
    return Run(**stated, objective=objective_for(stated["data"], stated.get("columns")))


def chosen_by_rows(stated: Mapping[str, Any], run: Run) -> list[str]:
    """Returns a line that tells of an objective that the rows chose, unless it is the usual one."""
    name = run.objective.name()
    return (
        []
        if "objective" in stated or name == usual("objective")
        else [f"no objective: {name}, which the rows call for"]
    )
