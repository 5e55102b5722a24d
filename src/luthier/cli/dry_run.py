"""The `--dry-run` of training: everything that comes before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.cli.commands.show import show_feature
from luthier.cli.output import console, say

if TYPE_CHECKING:
    from luthier.data.show import Meaning
    from luthier.training import Run
    from luthier.training.prepare import Prepared

SHOWN = 3
"""Rows whose tokens are told."""


def dry_run(run: Run, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Prints `notes`, what would be trained and the first row's tokens, and returns it as JSON; writes nothing."""
    from luthier import data
    from luthier.core.adapters.control import describe
    from luthier.data.show import Meaning
    from luthier.training.attachment import attach_all
    from luthier.training.context import loading_for
    from luthier.training.estimate import estimate
    from luthier.training.frozen import frozen_of
    from luthier.training.penalised import refuse_alone
    from luthier.training.prepare import prepare
    from luthier.training.processes import processes
    from luthier.training.progress import quiet
    from luthier.training.report import figures_told, needed, overview, plan_of, steps_of
    from luthier.training.rollouts.online import check_online
    from luthier.training.session import load

    with quiet(), loading_for(run):
        refuse_alone(run)
        prepared = prepare(run)
        check_online(run, prepared)
        loaded = load(run, prepared)
        attach_all(run, loaded, prepared, console(stderr=True))
        plan = plan_of(run, prepared, loaded.model, steps_of(run, len(prepared.train), processes()))
        collator = data.collator_for(prepared.task, loaded.processor)
        memory = estimate(loaded.model, prepared.train, collator, run.objective, run.training.batch)
        parts, steps = (prepared.train, prepared.evaluation), (plan.steps, plan.per_epoch)
        frozen = frozen_of(run, loaded.model, parts, steps, {})
    for line in notes:
        console(stderr=True).print(line, markup=False, soft_wrap=True)
    console().print(overview(run, prepared, loaded.model, plan, memory, {"frozen blocks": frozen.told}))
    say()
    meaning = Meaning(prepared.task, prepared.examples.labels or ())
    show_feature(prepared.train[0], loaded.processor, meaning)
    say("\nDry run: nothing was trained or written.")
    held = needed(memory, plan)
    return {
        "task": prepared.task,
        "layout": prepared.examples.layout,
        "columns": columns_read(run, prepared),
        "not_read": list(prepared.unread),
        "sites": [{**row, "ranks": list(row["ranks"])} for row in describe(loaded.model)],
        "plan": dataclasses.asdict(plan),
        "memory": dataclasses.asdict(held) | {"total": held.total},
        "figures": figures_told(run, prepared, plan, held),
        "notes": [*notes, *(f"{note}: {count}" for note, count in prepared.told.items())],
        "rows": [
            part
            for i in range(min(SHOWN, len(prepared.train)))
            for part in row_told(
                prepared.train[i], loaded.processor, pictures_told(prepared, prepared.train[i]["row"]), meaning
            )
        ],
    }


def columns_read(run: Run, prepared: Prepared) -> dict[str, str]:
    """Returns `{what it means: the column}` of the columns that are read."""
    from luthier.data.columns import mapping
    from luthier.data.load import ALL
    from luthier.data.sources import read
    from luthier.data.table import present

    layout, named = ALL[prepared.examples.layout], mapping(run.columns)
    there = present(read(run.data).rows)
    meant = {name: named.get(name, name) for name in layout.reads}
    return {name: column for name, column in meant.items() if column in there or column.partition(".")[0] in there}


def pictures_told(prepared: Prepared, row: int) -> list[dict[str, Any]]:
    """Returns `{"name", "url"}` of the first pictures of a row: its file, and a small copy as a `data:` URL."""
    from luthier.data.pictures import thumbnails

    example = next(each for each in prepared.examples.rows if each.row == row)
    own = [example.image] if example.image is not None else []
    return [dataclasses.asdict(each) for each in thumbnails([*own, *example.images])]


def row_told(
    feature: dict[str, Any], processor: Any, pictures: Sequence[dict[str, Any]], meaning: Meaning
) -> list[dict[str, Any]]:
    """Returns the title of a row, its pictures and its tokens, `[text, whether it is in the loss]`, and those of what
    it is compared with; of a sound with a text, those of the text, of other pictures and sounds no tokens."""
    from luthier.data.show import heard, parts_of, title, tokens_shown

    if heard(feature):
        feature, processor = feature | {"input_ids": feature["labels"]}, processor.tokenizer
    if "input_ids" not in feature:
        return [{"title": f"row {feature['row']}", "pictures": list(pictures), "tokens": []}]
    found = [
        {
            "title": title(row, beside, meaning),
            "pictures": [],
            "tokens": [list(each) for each in tokens_shown(row, processor, meaning)],
        }
        for row, beside in parts_of(feature)
    ]
    return [{**found[0], "pictures": list(pictures)}, *found[1:]]
