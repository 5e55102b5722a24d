"""A form at a place: its parameters and what it does there, and the state that the whole model shares."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from luthier.core.adapters.call import Call, Prompt, edit, entries
from luthier.core.adapters.siblings import Ahead, Reading
from luthier.core.contracts.form import Form, Params
from luthier.core.contracts.positions import Positions
from luthier.core.contracts.router import TASKS, Route, Routed, Told, routing, tasks_of
from luthier.core.contracts.site import Selection, Site

if TYPE_CHECKING:
    from luthier.core.adapters.container import Adapters

START = "_start"
"""Ends the name of a parameter's frozen start, where the effect of the start is taken off."""


def starts(form: Form, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the trained tensors, under the names of their starts."""
    return {f"{key}{START}": tensor.clone() for key, tensor in tensors.items() if key not in form.untrained()}


@dataclass(eq=False)
class Part:
    """One form on its sites; an adapter is the parts of one name."""

    name: str
    form: Form
    where: str
    sites: Selection
    ranks: Mapping[str, int] = field(default_factory=dict)
    """The rank at each site, by path, where ranks were allocated; 0 leaves a site out of `sites`."""
    relative: bool = False
    """The form acts as the difference to its start, which each slot keeps (see `Slot.change`)."""
    slots: dict[str, Slot] = field(default_factory=dict)
    """One slot for each group of sites that share parameters, by the group's name."""
    shapes: dict[Hashable, dict[str, torch.Size]] = field(default_factory=dict)
    """Shapes of the parameters by what they depend on, found once."""

    def form_at(self, site: Site) -> Form:
        """The form at the rank of a site."""
        return self.form.with_rank(self.ranks[site.path]) if self.ranks else self.form

    def trains(self, key: str) -> bool:
        """Whether a parameter of this name is trained."""
        return key not in self.form.untrained() and not key.endswith(START)


@dataclass(eq=False)
class State:
    """What the adapted modules of one model know in common."""

    parts: list[Part] = field(default_factory=list)
    calls: dict[str, Call | None] = field(default_factory=dict)
    """The pass under way through each stack, by its owner's path."""
    prompt: Prompt | None = None
    """Where prompts end: told by `generate` or by the user."""
    derived: Prompt | None = None
    """Where prompts end: read off the labels of the pass under way."""
    decoder: str | None = None
    """Path of the decoder of an encoder-decoder."""
    rows: tuple[str | None, ...] | None = None
    """The adapter of each row, in a mixed batch."""
    frozen: bool = False
    """What the adapters of the rows hold does not change as long as the rows stand."""
    tasks: Told | None = None
    """The tasks of the rows, told around the pass or by it."""
    routes: list[Route] | None = None
    """What routed forms decide, while somebody watches."""
    homes: list[Adapters] = field(default_factory=list)
    """The containers of all adapted modules, so that switching adapters walks no model."""
    routed: bool = False
    """Attentions go through the functions that know prefixes."""
    trained_before: dict[str, bool] = field(default_factory=dict)
    merged: dict[str, nn.Parameter] = field(default_factory=dict)
    """Parameters as they were before merging, by path."""
    folded: list[Slot] = field(default_factory=list)
    """The slots that were merged."""
    untied: bool = False
    """Merging had to untie the output head."""
    rounding: tuple[float, float] | None = None
    """What merging changed on probe inputs: (largest difference of an output, largest output); None if not known."""
    unpacked: list[nn.Module] = field(default_factory=list)
    """Quantised layers that were told not to repack themselves."""
    reached: set[tuple[str, str]] | None = None
    """Sites seen by a probing pass, while it runs."""
    met: set[tuple[str, str]] = field(default_factory=set)
    """Sites that a probing pass has seen since the last module was adapted."""
    reading: Reading | None = None
    """The tensor that a probing pass is reading."""
    returned: list[tuple[Adapters, Tensor, int]] = field(default_factory=list)
    """What layers returned in a probing pass, and its version then."""
    ahead: Ahead | None = None
    """Outputs of the layers that are called next."""

    def prompt_of(self, owner: str) -> Prompt:
        """The prompt of a stack: a decoder's, behind an encoder, is its start token unless told."""
        if self.decoder is None:
            return self.prompt or self.derived or Prompt()
        return (self.prompt or Prompt(end=1)) if owner == self.decoder else Prompt()

    def row_mask(self, name: str, like: Tensor) -> Tensor:
        """True for the rows of `like` that use the adapter `name`, shaped to broadcast over it."""
        rows = self.rows or ()
        each = entries(like, len(rows))
        mask = torch.tensor([row == name for row in rows], device=like.device).repeat_interleave(each)
        return mask.view(-1, *[1] * (like.dim() - 1))


class Slot(nn.Module):
    """The parameters of a form at a site (or at a group of sites that share them)."""

    def __init__(self, part: Part, site: Site, origin: Site, owner: str, params: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.part, self.name, self.site, self.owner = part, part.name, site, owner
        self.origin = origin  # the selected site, where this is another place of the same tied tensor
        self.form = part.form_at(origin)
        self.quiet, self.loud = self.form.quiet(), self.form.training()
        self.spot = Positions.parse(part.form.positions)
        self.enabled = True
        self.order = 0
        """Place among the slots of its module."""
        for key, tensor in params.items():
            self.register_parameter(key, tensor)

    def params(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The parameters in the dtype of the activations: they are small, so they are cast and not x."""
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in self._parameters.items() if v is not None}

    def own(self) -> Params:
        """The parameters as they are stored."""
        return self._parameters  # type: ignore[return-value]

    def start(self) -> Params:
        """The parameters as they were at the start, of a part that keeps it."""
        return _at_start(self.own())

    def active(self) -> Form:
        """The form as it acts now: without noise outside training."""
        return self.loud if self.training else self.quiet

    def face(self, note: Callable[[Tensor], None] | None = None) -> Face:
        """The function `(p, *given)` that changes the last of `given`: x, (x, y) or w.

        Of a start that is to have no effect, it is the change since then: y + f(p, x, y) - f(p₀, x, y). Nothing of
        the base is written, so packed bases serve and detaching is exact; at the start the difference is exactly
        zero; and what is linear stays linear, of rank 2r where f is of rank r. It costs f a second time, without
        gradients of its own, instead of a second copy of the base.
        """
        now = routing(self.active(), note)
        return _relative(now, routing(self.quiet)) if self.part.relative else now

    def factors(self, dtype: torch.dtype, w: Tensor) -> tuple[Tensor, Tensor] | None:
        """(B, A) with ŵ = w + B A exactly, for a change of low rank; else None."""
        p = self.params(dtype)
        now = self.quiet.factors(p, w)
        if now is None or not self.part.relative:
            return now
        then = self.quiet.factors(_at_start(p), w)
        assert then is not None
        return torch.cat([now[0], -then[0]], 1), torch.cat([now[1], then[1]], 0)

    def pre(self, state: State, x: Tensor) -> Tensor:
        """The input that the layer gets."""
        edited = self.face()(self.params(x.dtype), x)
        return edited if state.rows is None else torch.where(state.row_mask(self.name, x), edited, x)

    def post(self, state: State, x: Tensor, y: Tensor) -> Tensor:
        """The output after the edit."""
        call, p = state.calls.get(self.owner), self.params(y.dtype)
        if isinstance(self.form, Routed):
            p |= self.told(state, call, y)
        edited = edit(call, self.spot, self.face(self.note(state)), p, x, y)
        return edited if state.rows is None else torch.where(state.row_mask(self.name, y), edited, y)

    def told(self, state: State, call: Call | None, y: Tensor) -> dict[str, Tensor]:
        """The tasks of the rows, for a form that goes by them; a probing pass tells none."""
        if not (isinstance(self.form, Routed) and self.form.by_task) or state.reached is not None:
            return {}
        found = tasks_of(self.form, state.tasks if call is None else call.tasks, y)
        return {} if found is None else {TASKS: found}

    def note(self, state: State) -> Callable[[Tensor], None] | None:
        """What writes a decision of this slot down, while somebody watches."""
        form, routes = self.form, state.routes
        if routes is None or not isinstance(form, Routed):
            return None
        return lambda logits: routes.append(Route(self.site.path, form, logits))

    def weight(self, w: Tensor) -> Tensor:
        """The tensor that stands for w; experts, whatever their layout, meet the form one map at a time."""
        params, site = self.params(w.dtype), self.site
        face = _LOWERED[self.form.face](self.face())
        flipped = site.transposed and site.kind == "param"
        w = w.mT if flipped else w
        new = face(params, w) if self.form.maps(site) is None else torch.vmap(face)(params, w)
        return new.mT if flipped else new


Face = Callable[..., Tensor]


def _at_start(p: Params) -> Params:
    return {**p, **{key.removesuffix(START): t for key, t in p.items() if key.endswith(START)}}


def _relative(now: Face, then: Face) -> Face:
    def change(p: Params, *given: Tensor) -> Tensor:
        return given[-1] + (now(p, *given) - then(_at_start(p), *given))

    return change


class OneHot:
    """Token ids as the one-hot rows they stand for: `x @ M` is a look-up, so a table is a linear layer."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __matmul__(self, matrix: Tensor) -> Tensor:
        return nn.functional.embedding(self.ids, matrix)

    def dim(self) -> int:
        """As a tensor of ids has it; not an activation."""
        return self.ids.dim()


def _pre_lowered(face: Face) -> Face:
    return lambda p, w: (face(p, _eye(w)) @ w.mT).mT


def _post_lowered(face: Face) -> Face:
    return lambda p, w: face(p, _eye(w), w.mT).mT


def _eye(w: Tensor) -> Tensor:
    return torch.eye(w.shape[1], dtype=w.dtype, device=w.device)


_LOWERED: dict[str, Callable[[Face], Face]] = {"weight": lambda face: face, "pre": _pre_lowered, "post": _post_lowered}
"""Each face on the weight itself: a linear one is lowered by applying it to the identity."""
