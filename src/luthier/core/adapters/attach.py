"""Attaching and detaching adapters; an adapted model keeps its class, its type and its keys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from luthier.core.adapters.fits import check_fits
from luthier.core.adapters.memory_saving import patch, unpatch
from luthier.core.adapters.prefix import refresh_prefixes
from luthier.core.adapters.reach import check_reached
from luthier.core.adapters.start import Start, initial, parameters, regroup
from luthier.core.adapters.state import State
from luthier.core.adapters.swap import TRAINS, adapters_of, swap, unswap
from luthier.core.adapters.tuner import AdapterComponent, TunerLayer, starts
from luthier.core.contracts.form import Form, Stats
from luthier.core.contracts.init import Init
from luthier.core.contracts.positions import Invocation, Positions
from luthier.core.contracts.router import Routed
from luthier.core.contracts.site import Site, Sites
from luthier.core.deprecation import deprecated
from luthier.core.errors import LuthierError, near
from luthier.core.sites.reads import check_maps, is_read
from luthier.core.sites.select import select
from luthier.core.sites.structure import (
    adaptable,
    base_parameters,
    block_lists,
    decoder_path,
    keep_differentiable,
    one_stack,
    raw_parameter,
    stack_owner,
    unwrapped,
)

UNSUBTRACTED = {"cache": "adds to a cache", "inside": "runs a module anew", "aside": "adds a state to the last block's"}
"""Kinds of edit that no start is subtracted from, in words."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def attach(
    model: nn.Module,
    form: Form,
    where: str | Iterable[Site] | None = None,
    name: str = "default",
    *,
    stats: Mapping[str, Stats] | None = None,
    ranks: Mapping[str, int] | None = None,
    init: Init | None = None,
    subtract_start: bool | None = None,
    check: bool = True,
    relative: bool | None = None,
) -> nn.Module:
    """Attaches `form` at `where` (see `luthier.core.sites.select`) under `name` and freezes the rest of the model.

    The module classes change to subclasses of themselves; the model, its type and the base's keys stay.
    `stats` gives, by path, the statistics that the form needs beyond the weights (see `luthier.core.sites.collect`).
    `ranks` gives each site its own rank by path, 0 for none, with the scale of `Form.with_rank`; `init` chooses
    where the form starts. With `subtract_start` the effect of the start is subtracted, W_res = W - s B₀ A₀, so that no
    start changes the output (None: as `init` says; `relative` is its former name). With `check`, one small pass makes
    sure that every kind of site takes part in the forward pass; where no input of the model is known, a warning says
    so. Returns the model.

    Raises `LuthierError` for a selector that matches nothing, a kind of site that the form cannot take, ranks that
    do not fit the sites, a name that already acts there, and a site that the model bypasses; the model is then as
    it was.
    """
    _refuse_name(name)
    if relative is not None:
        deprecated("attach(relative=…)", "subtract_start=…", until="0.3")
        subtract_start = relative
    base = adaptable(model)
    spoken = form.where if where is None else where
    sites = select(base, spoken)
    if not sites:
        raise LuthierError("where is an empty list of sites, so nothing would be attached.")
    text = spoken if isinstance(spoken, str) else ", ".join(map(str, sites))
    kept = sites if ranks is None else ranked(form, sites, ranks)
    subtract_start = init is not None and init.subtract_start if subtract_start is None else subtract_start
    if subtract_start and form.edit_kind in UNSUBTRACTED:
        raise LuthierError(f"{form.name()} {UNSUBTRACTED[form.edit_kind]}, and no start can be subtracted there.")
    given = {path: dict(found) for path, found in (stats or {}).items()}
    for path, found in form.gather(base, kept).items():
        given[path] = {**given.get(path, {}), **found}
    components = [
        AdapterComponent(name, each, text, kept, dict(ranks or {}), subtract_start) for each in form.by_positions()
    ]

    def start(module: nn.Module, site: Site, component: AdapterComponent) -> dict[str, Tensor]:
        found = initial(module, site, component.form_at(site), given.get(site.path, {}), init)
        return found | starts(form, found) if subtract_start else found

    place(base, components, start, check=check)
    return model


def _refuse_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise LuthierError(f"{name!r} cannot name an adapter; use letters, digits, '_' and '-' (at most 64).")


def ranked(form: Form, sites: Sites, ranks: Mapping[str, int]) -> Sites:
    """Returns the sites whose rank is above 0; raises for ranks that do not fit `sites`."""
    paths = {site.path for site in sites}
    strange = [path for path in ranks if path not in paths]
    missing = [site.path for site in sites if site.path not in ranks]
    if strange or missing:
        why = f"{strange[0]!r} is none of the sites" if strange else f"{missing[0]!r} has none"
        raise LuthierError(f"ranks do not fit the {len(sites)} selected sites: {why}. Give one rank for each site.")
    wrong = [f"{path} has {r!r}" for path, r in ranks.items() if type(r) is not int or r < 0]
    if wrong:
        raise LuthierError(f"a rank is a whole number of at least 0; {wrong[0]}.")
    form.with_rank(1)  # refuses a form without a rank
    kept = Sites(site for site in sites if ranks[site.path])
    if not kept:
        raise LuthierError("every rank is 0, so nothing would be trained.")
    return kept


def place(model: nn.Module, components: Sequence[AdapterComponent], start: Start, *, check: bool = True) -> nn.Module:
    """Attaches `components` of one adapter, initialised by `start(module, site, component)`."""
    _refuse_name(components[0].name)
    state = find_state(model) or _new_state(model)
    state.passes.alone()
    try:
        for component in {component.sites: component for component in components}.values():
            check_fits(model, component.form, component.sites, component.name, state)
        for component in components:
            _place(model, state, component, start)
        _mark(model, state)
        refresh_prefixes(model, state)
        for component in components if check else ():
            check_reached(model, state, component.sites)
    except BaseException:
        _remove(model, state, components)
        raise
    return model


def find_state(model: nn.Module) -> State | None:
    """Returns the state of an adapted model, also under a wrapper (torch.compile, DDP); None if it is not adapted."""
    states = (vars(module).get("_luthier") for module in model.modules())
    return next((s for s in states if s is not None), None)


def state_of(model: nn.Module) -> State:
    """Returns the state of an adapted model; raises for a model without adapters."""
    state = find_state(model)
    if state is None:
        raise LuthierError(f"this {type(model).__name__} carries no adapter; attach or load one first.")
    return state


def _new_state(model: nn.Module) -> State:
    state = State(trained_before={n: p.requires_grad for n, p in model.named_parameters()})
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    state.unpacked = keep_differentiable(model)
    patch(model)
    vars(model)["_luthier"] = state
    if getattr(model, "is_quantized", False) and not getattr(model, TRAINS, False):
        swap(model, state, "")  # which lifts the mark while the model is saved
        vars(model)[TRAINS] = state.marked = True
    return state


def _place(model: nn.Module, state: State, component: AdapterComponent, start: Start) -> None:
    """Creates the parameters of every group and adds a tuner layer to every module."""
    state.components.append(component)
    regroup(model, component)
    owners = {path: stack_owner(model, path) for path in block_lists(model)}
    places = _places(model) if any(site.kind == "param" for site in component.sites) else {}
    for site in component.sites:
        module = model.get_submodule(site.module)
        if site.kind == "affine":
            check_maps(model, site.path)
        params = parameters(module, site, component, start)
        owner = next((o for path, o in owners.items() if site.path.startswith(path + ".")), "")
        for tied in _tied(model, site, places):
            tuner = TunerLayer(component, tied, site, owner, params)
            read = tied.kind == "affine" and is_read(model, tied.path)
            _hang(model.get_submodule(tied.module), tuner, state, read)
            component.tuners.setdefault(component.group(site), tuner)


def _hang(module: nn.Module, tuner: TunerLayer, state: State, read: bool) -> None:
    adapters = swap(module, state, tuner.site.module, reads=read or tuner.site.kind == "param")
    adapters.read |= read
    adapters.add(tuner)
    if tuner.form.edit_kind == "inside":
        for name, _, _ in tuner.site.inside:
            swap(module.get_submodule(name), state, f"{tuner.site.module}.{name}").inner = True


def _places(model: nn.Module) -> dict[int, list[str]]:
    """The paths of every tensor, by its id."""
    found: dict[int, list[str]] = {}
    for path, parameter in base_parameters(model, remove_duplicate=False):
        found.setdefault(id(parameter), []).append(path)
    return found


def _tied(model: nn.Module, site: Site, places: Mapping[int, list[str]]) -> list[Site]:
    """The site, and for a parameter every other place where the model uses the same tensor."""
    if site.kind != "param":
        return [site]
    paths = places[id(raw_parameter(model, site.path))]
    return [site, *(replace(site, path=path) for path in paths if path != site.path)]


def _mark(model: nn.Module, state: State) -> None:
    """Gives roots, owners and blocks their part in resolving positions and tasks, where a form asks for them."""
    for container in state.containers:
        container.block, container.frames = None, None
        container.final, container.measures, container.reads_rows, container.invoked = False, False, False, False
    if not any(_follows_calls(component.form) for component in state.components):
        return
    by_prompt = any(isinstance(each.form, Routed) and each.form.by_prompt for each in state.components)
    invoked = any(isinstance(Positions.parse(each.form.positions), Invocation) for each in state.components)
    for path, blocks in block_lists(model).items():
        owner = stack_owner(model, path)
        container = swap(model.get_submodule(owner), state, owner)
        container.owner, container.invoked = owner, invoked
        for index, block in enumerate(blocks):
            container = swap(block, state, f"{path}.{index}")
            container.block, container.final = owner, index == len(blocks) - 1
            container.measures = by_prompt and index == 0
    swap(model, state, "").root = True
    if any(each.form.sees for each in state.components):
        _mark_rows(model, state)
    state.passes.decoder = decoder_path(model)


def _mark_rows(model: nn.Module, state: State) -> None:
    """Gives the root, the blocks and what runs them their part in what forms read of whole rows."""
    for path in block_lists(model):
        owner, above = stack_owner(model, path), path.rpartition(".")[0]
        if above != owner:
            swap(model.get_submodule(above), state, above).frames = owner
    asked = [each.form for each in state.components if "input" in each.form.sees]
    swap(model, state, "").reads_rows = True
    for form in (each for each in asked if "states" in each.sees):
        path = one_stack(model, form.name())
        for index in range(len(block_lists(model)[path])):
            swap(model.get_submodule(f"{path}.{index}"), state, f"{path}.{index}").reads_rows = True


def _follows_calls(form: Form) -> bool:
    return form.positions != "all" or isinstance(form, Routed) or form.edit_kind == "aside" or bool(form.sees)


def detach(model: nn.Module, name: str | None = None) -> nn.Module:
    """Detaches an adapter, or all without a name; the last one restores classes and `requires_grad` flags."""
    state = state_of(model)
    if state.merged:
        raise LuthierError("adapters are merged into the weights; unmerge before detaching.")
    state.passes.alone()
    if name is not None:
        check_name(state, name)
    _remove(unwrapped(model), state, [component for component in state.components if name in (None, component.name)])
    return model


def adapter_names(state: State) -> list[str]:
    """Returns the names of the attached adapters, in order."""
    return list(dict.fromkeys(component.name for component in state.components))


def check_name(state: State, name: str) -> None:
    """Raises unless an adapter of that name is attached."""
    names = adapter_names(state)
    if name not in names:
        raise LuthierError(f"no adapter named {name!r}{near(name, names)} There are: {', '.join(names)}.")


def _remove(model: nn.Module, state: State, components: Sequence[AdapterComponent]) -> None:
    for container in state.containers:
        container.remove(components)
    state.components = [component for component in state.components if component not in components]
    refresh_prefixes(model, state)
    if not state.components:
        _restore(model, state)


def _restore(model: nn.Module, state: State) -> None:
    for module in list(model.modules()):
        if (adapters := adapters_of(module)) and not adapters._modules:
            unswap(module, state)
    unpatch(model)
    flags = state.trained_before
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(flags.get(path, parameter.requires_grad))
    for module in state.unpacked:
        module.support_avx512bf16_for_cpu = True  # type: ignore[assignment]
    for module in model.modules():
        vars(module).pop("_luthier", None)
    if state.marked:
        vars(model).pop(TRAINS, None)
