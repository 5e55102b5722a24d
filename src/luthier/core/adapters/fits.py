"""Whether a form can act at the sites that were chosen for it, told before anything is attached."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from luthier.core.adapters.state import State
from luthier.core.adapters.swap import generative
from luthier.core.contracts.form import Form
from luthier.core.contracts.positions import Invocation, Positions
from luthier.core.contracts.site import Sites
from luthier.core.errors import LuthierError
from luthier.core.sites.pictures import language_path
from luthier.core.sites.structure import block_lists, decoder_path, raw_parameter


def check_fits(model: nn.Module, form: Form, sites: Sites, name: str, state: State) -> None:
    """Raises for sites that the form cannot act at, and for those where an adapter of that name acts already."""
    _check_kinds(form, sites, name, state)
    _check_matrices(model, form, sites)
    _check_blocks(model, form, sites)
    _check_sight(model, form, sites)
    _check_tokens(model, form)


def _check_kinds(form: Form, sites: Sites, name: str, state: State) -> None:
    wrong = [site for site in sites if site.kind not in form.kinds]
    if wrong:
        raise LuthierError(
            f"{form.name()} acts on sites of kind {', '.join(form.kinds)}; {wrong[0]} is of kind "
            f"{wrong[0].kind} (its default is where={form.where!r})."
        )
    if state.merged:
        raise LuthierError("adapters are merged into the weights; unmerge before attaching another.")
    taken = {
        key for component in state.components if component.name == name for key in (s.key for s in component.sites)
    }
    double = [site for site in sites if site.key in taken]
    if double:
        raise LuthierError(
            f"adapter {name!r} already acts on {double[0]}; give the new one another name, or detach it first."
        )


def _check_matrices(model: nn.Module, form: Form, sites: Sites) -> None:
    """Raises for a form of matrices on a parameter of fewer than two axes."""
    for site in () if form.elementwise else (site for site in sites if site.kind == "param"):
        if (axes := raw_parameter(model, site.path).dim()) < 2:
            raise LuthierError(
                f"{form.name()} changes matrices, and {site} has {axes} axis; leave it out (where), or choose a form "
                "of single numbers (full, bitfit)."
            )


def _check_blocks(model: nn.Module, form: Form, sites: Sites) -> None:
    """Raises for a form that goes along the blocks at a place that is not one."""
    if form.edit_kind != "aside":
        return
    blocks = {f"{path}.{index}" for path, held in block_lists(model).items() for index in range(len(held))}
    if wrong := [site for site in sites if site.path not in blocks]:
        raise LuthierError(
            f"{form.name()} goes along the blocks of a model, and {wrong[0]} is not the output of one; choose blocks "
            f"(its default is where={form.where!r})."
        )


def _check_sight(model: nn.Module, form: Form, sites: Sites) -> None:
    """Raises for a form that reads whole rows where a model writes token by token: it would see what comes next."""
    if not form.sees or not generative(model):
        return
    writes = decoder_path(model) or language_path(model) or ""
    blocks = [f"{path}." for path in block_lists(model)]
    for site in sites:
        if not any(site.path.startswith(path) for path in blocks) or not writes or site.path.startswith(f"{writes}."):
            raise LuthierError(
                f"{form.name()} reads whole rows, and {type(model).__name__} writes token by token: at {site} a token "
                "would see those behind it. Choose the blocks of an encoder (where), or a model that classifies."
            )


def _check_tokens(model: nn.Module, form: Form) -> None:
    """Raises for a form that acts from tokens on that the model's input table does not hold: it would never act."""
    parsed = [Positions.parse(group) for group in form.positions.split(",")]
    named = [token for at in parsed if isinstance(at, Invocation) for token in at.tokens]
    if not named or not isinstance(model, PreTrainedModel):
        return
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:  # it has none
        return
    if isinstance(table, nn.Embedding) and max(named) >= table.num_embeddings:
        raise LuthierError(
            f"positions={form.positions!r} names the token {max(named)}, and this model's are 0 to "
            f"{table.num_embeddings - 1}, so that it would never act; give the ids that the model's own tokenizer "
            "makes of the words."
        )
