"""The adapter of one module: the parameters of a form at a site, and the edit that they make there."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from luthier.core.adapters.call import Call, edit
from luthier.core.adapters.pass_ import Pass
from luthier.core.adapters.row_input import what_is_read
from luthier.core.contracts.form import Form, Params
from luthier.core.contracts.positions import Positions
from luthier.core.contracts.router import ROUTE_QUERY, ROUTE_TASKS, Route, Routed, for_rows, routing, tasks_of
from luthier.core.contracts.site import Site, Sites
from luthier.core.errors import LuthierError
from luthier.core.sites.structure import PlainAttributes

START = "_start"
"""The suffix of a parameter's frozen initial value, where the effect of the start is subtracted."""


def starts(form: Form, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies the trainable tensors, under the names of their initial values."""
    return {f"{key}{START}": tensor.clone() for key, tensor in tensors.items() if key not in form.untrained()}


@dataclass(eq=False)
class AdapterComponent:
    """One component of an adapter: a form with its sites; an adapter is all components of one name."""

    name: str
    form: Form
    where: str
    sites: Sites
    ranks: Mapping[str, int] = field(default_factory=dict)
    """The rank at each site, by path, where ranks were allocated; 0 leaves a site out of `sites`."""
    subtract_start: bool = False
    """Whether the effect of the start is subtracted; each tuner layer keeps it (see `TunerLayer.edit_function`)."""
    tuners: dict[str, TunerLayer] = field(default_factory=dict)
    """One tuner layer for each group of sites that share parameters, by the group's name."""
    shapes: dict[Hashable, dict[str, torch.Size]] = field(default_factory=dict)
    """A cache of the parameters' shapes, by what they depend on."""

    groups: dict[tuple[str, str], str] = field(default_factory=dict)
    """Groups by site, where they are narrower than those of the form (see `luthier.core.adapters.start.regroup`)."""

    def group(self, site: Site) -> str:
        """Returns the name of the group of sites that share parameters with `site`."""
        return self.groups.get(site.key) or self.form.group(site)

    def form_at(self, site: Site) -> Form:
        """Returns the form at the rank of a site."""
        return self.form.with_rank(self.ranks[site.path]) if self.ranks else self.form

    def trains(self, key: str) -> bool:
        """Returns whether a parameter of this name is trained."""
        return key not in self.form.untrained() and not key.endswith(START)


class TunerLayer(PlainAttributes):
    """The parameters of a form at one module, or at several that share them (peft calls it a tuner layer)."""

    def __init__(
        self, component: AdapterComponent, site: Site, origin: Site, owner: str, params: dict[str, nn.Parameter]
    ) -> None:
        super().__init__()
        self.component, self.name, self.site, self.owner = component, component.name, site, owner
        self.origin = origin  # the selected site, where this is another place of the same tied tensor
        self.form = component.form_at(origin)
        self.eval_form, self.train_form = self.form.eval_mode(), self.form.train_mode()
        self.positions = Positions.parse(component.form.positions)
        self.enabled = True
        self.order = 0
        """The order of attachment on its module."""
        for key, tensor in params.items():
            self.register_parameter(key, tensor)

    def params(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Returns the parameters in the dtype of the activations: they are small, so they are cast and not x."""
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in self._parameters.items() if v is not None}

    def own(self) -> Params:
        """Returns the parameters in the dtype in which they are stored."""
        return self._parameters  # type: ignore[return-value]

    def start(self) -> Params:
        """Returns the parameters at their initial values, for a component that keeps them."""
        return _at_start(self.own())

    def active(self) -> Form:
        """Returns the form as it acts in the present mode: `train_form` or `eval_form`."""
        return self.train_form if self.training else self.eval_form

    def edit_function(self, note: Callable[[Tensor], None] | None = None) -> EditFunction:
        """Returns the edit as a function `(p, *given)` that changes the last of `given`: x, (x, y) or w.

        Of a start that is to have no effect, it is the change since then: y + f(p, x, y) - f(p₀, x, y). Nothing of
        the base is written, so quantised bases serve and detaching is exact; at the start the difference is exactly
        zero; and what is linear stays linear, of rank 2r where f is of rank r. It costs f a second time, without
        gradients of its own, instead of a second copy of the base.
        """
        now = routing(self.active(), note)
        return _subtracted(now, routing(self.eval_form)) if self.component.subtract_start else now

    def factors(self, dtype: torch.dtype, w: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns (B, A) with ŵ = w + B A exactly, for a change of low rank; else None."""
        p = self.params(dtype)
        now = self.eval_form.factors(p, w)
        if now is None or not self.component.subtract_start:
            return now
        then = self.eval_form.factors(_at_start(p), w)
        assert then is not None
        return torch.cat([now[0], -then[0]], -1), torch.cat([now[1], then[1]], -2)

    def pre(self, x: Tensor) -> Tensor:
        """Returns the edited input of the layer."""
        return self.edit_function()(self.params(x.dtype), x)

    def post(self, now: Pass, x: Tensor, y: Tensor) -> Tensor:
        """Returns the edited output of the layer."""
        call = now.calls.get(self.owner)
        if call is not None and (packing := call.packing) is not None and packing.holds(y) and self.by_row:
            entering = packing.unpack(x) if packing.holds(x) else x
            return packing.pack(self._post(now, call, entering, packing.unpack(y)))
        return self._post(now, call, x, y)

    @property
    def by_row(self) -> bool:
        """Whether the edit of a token depends on its place in the row, on others, or on the row's task or prompt."""
        routed = isinstance(self.form, Routed) and (self.form.by_task or self.form.by_prompt)
        return self.positions is not None or bool(self.form.sees) or routed

    def _post(self, now: Pass, call: Call | None, x: Tensor, y: Tensor) -> Tensor:
        p = self.params(y.dtype)
        if isinstance(self.form, Routed):
            p |= self.told(now, call, y)
        if self.form.sees:
            p |= what_is_read(self.form, now.seen, call, y)
        return edit(call, self.positions, self.edit_function(self.note(now, call)), p, x, y)

    def inside(self, now: Pass, x: Tensor, run: Callable[..., Tensor]) -> Tensor:
        """Returns the output of the module as the form runs it."""
        call = now.calls.get(self.owner)
        if call is not None and (packing := call.packing) is not None and packing.holds(x) and self.by_row:
            return packing.pack(self._inside(now, call, packing.unpack(x), run))
        return self._inside(now, call, x, run)

    def _inside(self, now: Pass, call: Call | None, x: Tensor, run: Callable[..., Tensor]) -> Tensor:
        p = self.params(x.dtype) | self.told(now, call, x)
        return self.edit_function(self.note(now, call))(p, x, run)

    def aside(self, h: Tensor, a: Tensor) -> Tensor:
        """Returns the state beside the blocks after this one, whose output is h."""
        return self.edit_function()(self.params(h.dtype), h, a)

    @property
    def rate(self) -> float:
        """The rate of dropout in the present mode, for a form that has one."""
        return float(vars(self.active()).get("dropout", 0.0))

    @property
    def draws(self) -> bool:
        """Whether its edit draws random numbers in the present mode, as dropout does."""
        return self.training and self.train_form is not self.eval_form and self.train_form != self.eval_form

    def told(self, now: Pass, call: Call | None, y: Tensor) -> dict[str, Tensor]:
        """Returns the tasks of the rows, for a form that routes by task, or the means of their prompts, for one that
        goes by these; a probing pass has no tasks."""
        if not isinstance(self.form, Routed):
            return {}
        if self.form.by_prompt:
            return {ROUTE_QUERY: self.queries(call, y)}
        if not self.form.by_task or now.reached is not None:
            return {}
        found = tasks_of(self.form, now.row_tasks.get(self.name, now.tasks if call is None else call.tasks), y)
        return {} if found is None else {ROUTE_TASKS: found}

    def queries(self, call: Call | None, y: Tensor) -> Tensor:
        """Returns the mean prompt of each row of y, of each token where y [tokens, d] has those of all rows."""
        found = self.query(call)
        if call is not None and y.dim() == 2 and len(y) == call.batch * call.length:
            return found.repeat_interleave(call.length, 0)
        return for_rows(found, y, "prompts")

    def query(self, call: Call | None) -> Tensor:
        """Returns the mean of each row's prompt; raises where the pass has none."""
        if call is None or call.query is None:
            raise LuthierError(
                f"{self.form.name()} at {self.site} goes by the mean of the prompt's embeddings, and this pass has "
                "none: either the site is outside the blocks, or the cache was filled while the adapter was not there."
            )
        return call.query

    def note(self, now: Pass, call: Call | None) -> Callable[[Tensor], None] | None:
        """Returns a function that records this layer's routing decisions, while `watched` is active."""
        packing = call.packing if call is not None else None
        form, routes = self.form, now.routes
        if routes is None or not isinstance(form, Routed):
            return None
        put_back = lambda t: packing.unpack(t) if packing is not None and packing.holds(t) else t  # noqa: E731
        return lambda logits: routes.append(Route(self.site.path, form, put_back(logits), self.name, self.site.layer))

    def weight(self, w: Tensor) -> Tensor:
        """Returns the edited weight; the experts of a 3-D parameter are edited one matrix at a time,
        and a convolution's as the matrix that acts on its unfolded input."""
        params, site = self.params(w.dtype), self.site
        edit_function = _LOWERED[self.form.edit_kind](self.edit_function())
        flipped = site.transposed and site.kind == "param"
        shape = w.shape
        w = w.mT if flipped else w.flatten(1) if site.unfolded else w
        new = edit_function(params, w) if self.form.maps(site) is None else torch.vmap(edit_function)(params, w)
        return new.mT if flipped else new.reshape(shape) if site.unfolded else new


EditFunction = Callable[..., Tensor]


def _at_start(p: Params) -> Params:
    return {**p, **{key.removesuffix(START): t for key, t in p.items() if key.endswith(START)}}


def _subtracted(now: EditFunction, then: EditFunction) -> EditFunction:
    def change(p: Params, *given: Tensor) -> Tensor:
        return given[-1] + (now(p, *given) - then(_at_start(p), *given))

    return change


def _pre_lowered(edit_function: EditFunction) -> EditFunction:
    return lambda p, w: (edit_function(p, _eye(w)) @ w.mT).mT


def _post_lowered(edit_function: EditFunction) -> EditFunction:
    return lambda p, w: edit_function(p, _eye(w), w.mT).mT


def _eye(w: Tensor) -> Tensor:
    return torch.eye(w.shape[1], dtype=w.dtype, device=w.device)


_LOWERED: dict[str, Callable[[EditFunction], EditFunction]] = {
    "weight": lambda edit_function: edit_function,
    "pre": _pre_lowered,
    "post": _post_lowered,
}
"""Each kind of edit as one of the weight: a linear edit is lowered by applying it to the identity."""
