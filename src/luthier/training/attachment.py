"""Attaching what a run trains: its form, with measured ranks and initial factors if asked for, and new heads."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from luthier import data
from luthier.core.adapters.attach import attach, state_of
from luthier.core.contracts.form import Form
from luthier.core.errors import LuthierError
from luthier.core.sites.select import select
from luthier.core.storage.store import load
from luthier.data.encode import pieces_of
from luthier.data.labels import labels_in_order
from luthier.measuring.allocation import Allocation, allocate, allocated
from luthier.methods.forms.full import Full
from luthier.models import Loaded
from luthier.training.from_adapter import folder_of
from luthier.training.head import start_head
from luthier.training.prepare import Prepared
from luthier.training.spec import Run

TENSORS = ("affine", "embedding", "param")
"""Kinds of site that change a tensor of the base."""


def attach_all(
    run: Run, loaded: Loaded, prepared: Prepared, console: Console, known: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Attaches the forms; modules that the checkpoint lacks are trained in full, as part of the same adapter.

    `known` is what an interrupted run had measured: its ranks then hold, and its start is in the checkpoint. Returns
    what was measured, as JSON holds it.
    """
    if run.from_adapter is not None:
        load(loaded.model, folder_of(run.from_adapter, run.model, run.task), run.name)
        _attach_new(run, loaded)
        return {}
    start_head(loaded, prepared)
    where = beside_new(run.form, run.where, loaded)
    found = _measured(run, where, loaded, prepared, console) if known is None else _recalled(run, known)
    init = run.init if known is None else None
    attach(
        loaded.model,
        found.form,
        where,
        run.name,
        stats=found.stats,
        ranks=found.ranks,
        init=init,
        subtract_start=run.init is not None and run.init.subtract_start,
    )
    for targeted in run.also:
        attach(loaded.model, targeted.form, beside_new(targeted.form, targeted.where, loaded), run.name)
    _attach_new(run, loaded)
    return found.evidence


def beside_new(form: Form, where: str | None, loaded: Loaded) -> str | None:
    """`where` without what is new to the checkpoint: modules that are trained whole, to which a change adds nothing.

    A change is also told against the base's numbers, and those of a new module are other ones in every base. Raises
    `LuthierError` where nothing would be left.
    """
    spoken = form.where if where is None else where
    sites = select(loaded.model, spoken)
    inside = [site for site in sites if site.module in loaded.new_modules and site.kind in TENSORS]
    if isinstance(form, Full) or not inside:
        return where
    if len(inside) == len(sites):
        raise LuthierError(
            f"where={spoken!r} selects {inside[0]} alone, which {loaded.name!r} has no weights for: it is new, and "
            f"trained whole without {form.name()}. Choose layers that the checkpoint holds, or the method full."
        )
    names = sorted({site.path if site.kind != "param" else f"params({site.path})" for site in inside})
    return f"({spoken}) - ({' | '.join(names)})"


def _measured(run: Run, where: str | None, loaded: Loaded, prepared: Prepared, console: Console) -> Allocation:
    settings = run.training
    return allocate(
        loaded.model,
        run.form,
        where,
        ranks=run.ranks,
        init=run.init,
        budget=run.budget,
        features=labels_in_order(prepared.plain, prepared.examples.labels, loaded.model.config),
        collator=data.collator_for(prepared.task, loaded.processor),
        calibration=run.calibration.seeded(settings.seed),
        new=loaded.new_modules,
        data=f"{prepared.seen} {prepared.task} {settings.max_length} {settings.truncate}{pieces_of(prepared.plain)}",
        console=console,
    )


def _recalled(run: Run, known: dict[str, Any]) -> Allocation:
    return allocated(run.form, known["ranks"], {}, known) if known else Allocation(run.form, None, {}, {})


def _attach_new(run: Run, loaded: Loaded) -> None:
    model = loaded.model
    taken = {site.key for component in state_of(model).components for site in component.sites}
    fresh = []
    for module in loaded.new_modules:
        sites = select(model, f"params({module}.*)")
        left = [site for site in sites if site.key not in taken]
        fresh += [f"params({module}.*)"] if len(left) == len(sites) else [f"params({site.path})" for site in left]
    if fresh:
        attach(model, Full(), " | ".join(fresh), run.name)
