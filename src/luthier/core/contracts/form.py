"""The contract of a form (an adapter method): frozen hyper-parameters, a dict of tensors, and one pure function."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from luthier.core.contracts.component import Component
from luthier.core.contracts.positions import Positions
from luthier.core.contracts.site import Site
from luthier.core.errors import LuthierError

Params = Mapping[str, Tensor]
"""The parameters of one site, by name."""
Stats = Mapping[str, Tensor]
"""The statistics of one site, by name: those that the form `needs`."""
F = TypeVar("F", bound="Form")

ROW_MASK = "_mask"
"""The name of the rows' padding mask [rows, tokens] among the parameters of a form that `sees` it."""
ROW_STATES = "_states"
"""The name of what chosen blocks gave [layers, rows, tokens, d] among the parameters of a form that `sees` it."""
ROW_INPUT = "_input"
"""The name of what the model was given among the parameters of a form that `sees` it."""
EDIT_KINDS = ("pre", "post", "weight", "cache", "inside", "aside")


@dataclass(frozen=True)
class Form(Component):
    """An adapter method, such as LoRA: what is added at each site, as exactly one of six kinds of edit.

    A form is a dataclass with `init(self, site, stats) -> dict[str, Tensor]` and exactly one of

        pre(self, p, x) -> x̂           the input that the layer gets instead of x [..., d_in]
        post(self, p, x, y) -> ŷ       the output instead of y [..., d_out]; on a stream x is the module's input
        weight(self, p, w) -> ŵ        the tensor instead of w (a linear layer's is [d_out, d_in])
        cache(self, p) -> (k, v)       keys and values [heads, n, d_head] put before those of the attention
        inside(self, p, x, run) -> ŷ   the output of a module whose linear layers are run by other functions:
                                       run(x, {name: f}) is the module on x, with f(x, layer) in place of a layer
        aside(self, p, h, a) -> a'     a state beside the blocks, changed by what each of them gives (h) and added to
                                       the last one's output; a starts as zeros

    All are pure: the same p and x give the same result, whatever the model around them. Each token is edited by itself:
    training may bring the tokens of all rows as x [1, tokens, d], without padding. A form that `sees` more than that
    gets rows, x [rows, tokens, d], and what it reads beside the parameters:

        mask     p[ROW_MASK] [rows, tokens], False for padding; not there where a batch has none
        states   p[ROW_STATES] [layers, rows, tokens, d], what the blocks of `layers_read` give
        input    p[ROW_INPUT], what the model was given: ids [rows, tokens], pictures, sounds or spectrograms
    """

    renamed: ClassVar = {
        "noise": "train_only", "calm": "eval_only", "whole": "elementwise", "reader": "down_projection",
        "writer": "up_projection", "readers": "down_projections",
    }  # fmt: skip

    sees: ClassVar[tuple[str, ...]] = ()
    """What its edit reads beyond the token: mask (the others of a row), states, input. It is then refused where a model
    writes token by token, whose tokens must not see what comes behind them."""
    kinds: ClassVar[tuple[str, ...]] = ("affine",)
    """The kinds of site that the form can be attached to."""
    where: ClassVar[str] = "all-linear"
    """The selector of the sites that it is attached to by default."""
    frozen: ClassVar[tuple[str, ...]] = ()
    """The parameters that are saved but not trained."""
    train_only: ClassVar[tuple[str, ...]] = ("dropout",)
    """Hyper-parameters that act in train mode only; in eval mode they are zero."""
    eval_only: ClassVar[tuple[str, ...]] = ()
    """Hyper-parameters that act in eval mode only; in train mode they have their default."""
    linear: ClassVar[bool] = True
    """Whether the adapted map is linear in x, so that it can be merged into a weight."""
    elementwise: ClassVar[bool] = False
    """Whether it edits a tensor of any shape at once; other forms edit each matrix of a 3-D parameter by itself."""
    gathers: ClassVar[bool] = False
    """Whether the shapes of its parameters depend on what `gather` returns, so that a site does not tell them."""
    replaces: ClassVar[bool] = False
    """Whether its tensor replaces the base's tensor."""
    identity: ClassVar[bool] = True
    """Whether the adapter is a no-op before training."""
    lr: ClassVar[float] = 5e-4
    """The default learning rate."""
    down_projection: ClassVar[str] = ""
    """The down-projection A [rank, d_in], which an initialiser may choose because another factor starts at zero."""
    up_projection: ClassVar[str] = ""
    """The up-projection B [d_out, rank], where the change is s B A: an initialiser may then choose both."""
    down_projections: ClassVar[tuple[str, ...]] = ()
    """All down-projections whose partners start at zero. Default: `down_projection`, where there is one."""
    edit_kind: ClassVar[str] = ""
    """The kind of edit: which one of `pre`, `post`, `weight` and `cache` the class defines."""

    positions: str = field(default="all", kw_only=True)
    """Positions that are edited: all, the first and last prompt tokens, as f7+l7, f3, l1, or those from the last
    place on where tokens 5 and 6 stand, as from:5.6 (in the prompt, in generation; without these tokens none).
    A comma gives each group parameters of its own: f5,l5."""
    share: str | None = field(default=None, kw_only=True)
    """Who shares parameters: none (each site its own), type (one set per module type), all (one set)."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if cls.down_projection and not cls.down_projections:
            cls.down_projections = (cls.down_projection,)
        defined = [kind for kind in EDIT_KINDS if kind in vars(cls)]
        if len(defined) > 1 or (defined and cls.edit_kind):
            raise TypeError(f"{cls.__name__} must define exactly one of {', '.join(EDIT_KINDS)}")
        if defined:
            cls.edit_kind = defined[0]

    def check(self) -> None:
        for group in self.positions.split(","):
            Positions.parse(group)
        if self.positions != "all" and self.edit_kind != "post":
            raise LuthierError(
                f"{self.name()} acts on whole layers, so positions={self.positions!r} cannot narrow it; "
                "only forms that edit an output take positions."
            )
        if self.positions != "all" and self.sees:
            raise LuthierError(
                f"{self.name()} reads whole rows, so positions={self.positions!r} cannot narrow it; leave them out."
            )
        if self.share not in (None, "type", "all"):
            raise LuthierError(f"share is {self.share!r}; expected none, type or all.")
        for key, (hint, _) in self.settings().items():
            self._check_number(key, getattr(self, key), hint)

    def _check_number(self, key: str, value: object, hint: object) -> None:
        label = f"{self.name()}.{key}"
        counts = int in (hint, *get_args(hint))
        if isinstance(value, int) and not isinstance(value, bool) and value < 1 and counts:
            raise LuthierError(f"{label} is {value}; expected a whole number of at least 1.")
        if key in self.train_only and isinstance(value, int | float) and not 0 <= value < 1:
            raise LuthierError(f"{label} is {value}; expected a rate of at least 0 and below 1.")

    @property
    def scale(self) -> float:
        """The scale s of the change."""
        return 1.0

    def init(self, site: Site, stats: Stats) -> dict[str, Tensor]:
        """Returns the parameters of one site before training, on the default device."""
        raise NotImplementedError(f"{type(self).__name__} must define init")

    def untrained(self) -> tuple[str, ...]:
        """Returns the parameters that are saved and, under these settings, not trained."""
        return self.frozen

    def sources(self) -> tuple[str, ...]:
        """Returns the folders of adapters that its initialisation reads; a trained form no longer needs them."""
        return ()

    def gather(self, model: nn.Module, sites: Sequence[Site]) -> Mapping[str, Stats]:
        """Returns what `init` is given beyond statistics, by path, read from `sources` before anything is attached.

        Raises `LuthierError` for sources that do not fit the model or the form.
        """
        return {}

    def layers_read(self, depth: int) -> tuple[int, ...]:
        """Returns the blocks, of `depth`, whose outputs its edit reads (`sees` names states); default: none."""
        return ()

    def maps(self, site: Site) -> int | None:
        """Returns how many matrices of a site are edited one by one; None where the tensor is edited at once."""
        return None if self.elementwise else site.experts

    def factors(self, p: Params, w: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns (B, A) with ŵ = w + B A exactly, for a form whose change has low rank; else None."""
        return None

    def entries(self, p: Params) -> tuple[Tensor, Tensor] | None:
        """Returns (index, values): ŵ is w with `values` added at flat positions, if the change is sparse; else None."""
        return None

    def with_rank(self: F, rank: int) -> F:
        """Returns the form at another rank, with the scale that its rule gives there.

        With s = alpha / rank, alpha goes with the rank and s stays: the change keeps its size per direction. With
        s = alpha / sqrt(rank) (rslora), alpha stays: that rule itself keeps the size of a change as the rank grows.
        """
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        if "rank" not in own:
            raise LuthierError(f"{self.name()} has no rank, so none can be chosen for it.")
        moves = own.get("alpha") is not None and own.get("scaling") != "rslora"
        return replace(self, rank=rank, **({"alpha": own["alpha"] * rank / own["rank"]} if moves else {}))

    def eval_mode(self: F) -> F:
        """Returns the form as it acts in eval mode: its train-only hyper-parameters are zero."""
        own = {f.name for f in fields(self)}
        active = {name: 0.0 for name in self.train_only if name in own and getattr(self, name)}
        return replace(self, **active) if active else self

    def train_mode(self: F) -> F:
        """Returns the form as it acts in train mode: its eval-only hyper-parameters have their defaults."""
        default = {f.name: f.default for f in fields(self) if f.name in self.eval_only}
        set_ = {name: value for name, value in default.items() if getattr(self, name) != value}
        return replace(self, **set_) if set_ else self

    def by_positions(self: F) -> list[F]:
        """Returns one form for each comma-separated group of positions."""
        return [replace(self, positions=group.strip()) for group in self.positions.split(",")]

    def group(self, site: Site) -> str:
        """Returns the name of the group of sites that share parameters with `site`."""
        return {None: site.path, "type": site.type, "all": "all"}[self.share]


def edit_function_of(form: Form):
    """Returns the method of a form that edits: `pre`, `post`, `weight` or `cache`."""
    return getattr(form, form.edit_kind)


def kaiming(*shape: int) -> Tensor:
    """Draws Kaiming-uniform values with a = sqrt(5): uniform in ±1/sqrt(fan_in), the default of a linear layer."""
    return torch.empty(*shape).uniform_(-1, 1) / math.sqrt(shape[-1])


def orthogonal(rows: int, columns: int) -> Tensor:
    """Draws a random matrix with orthonormal rows."""
    if rows > columns:
        raise LuthierError(f"{rows} orthonormal rows do not fit in width {columns}; lower the rank.")
    return torch.nn.init.orthogonal_(torch.empty(rows, columns))


def dropout(x: Tensor, rate: float) -> Tensor:
    """Applies dropout at `rate`, which is 0 in eval mode (see `Form.train_only`).

    Of the one-hot rows that token ids of a table stand for, it drops whole tokens.
    """
    if not rate:
        return x
    return functional.dropout(x, rate, training=True) if isinstance(x, Tensor) else x.dropped(rate)


def rank_scale(alpha: float, rank: int, rule: str) -> float:
    """Returns the scale s of a low-rank change: alpha / r ("lora") or alpha / sqrt(r) ("rslora", arXiv 2312.03732)."""
    return alpha / (math.sqrt(rank) if rule == "rslora" else rank)
