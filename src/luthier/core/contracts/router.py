"""The contract of a router: a form that holds several experts and mixes them, by the token or by the task of a row.

A routed form tells `route(p, x)`, the logits of its experts, and `weights(logits)`, which sum to 1 over the experts.
The core computes the logits before its edit and hands them on as `p[ROUTE]`, so that a pass can be watched
(`watched`) without being computed twice. What keeps experts busy belongs to the form as well: `balance` is the loss
that training adds to that of the objective, `load` what a run's table and `examine --by routing` tell. Forms that go by
the task find the tasks of the rows in `p[ROUTE_TASKS]`; the call brings them: `model(…, tasks=…)`,
`model.generate(…, tasks=…)`, or `with lt.tasks(model, …)` around any call. Forms that go by the prompt find the mean of
what enters the first block over each row's prompt in `p[ROUTE_QUERY]`; the core measures it in the same pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from luthier.core.contracts.form import Form, Params, edit_function_of
from luthier.core.errors import LuthierError, near

ROUTE = "_route"
"""The name of the experts' logits among the parameters that `post` is given."""
ROUTE_TASKS = "_tasks"
"""The name of the rows' task indices among the parameters that `post` is given."""
ROUTE_QUERY = "_query"
"""The name of the rows' mean prompt embeddings [rows, d] among the parameters that `post` is given."""
Told = str | Sequence[str] | Tensor
"""The tasks of a batch: one name, a name for each row, or indices into the form's task names [rows]."""


@dataclass(frozen=True)
class Routed(Form):
    """A form with several experts at a site and a router that mixes them (a mixture of experts)."""

    linear: ClassVar[bool] = False
    by_task: ClassVar[bool] = False
    """Whether it routes by the task of each row, which the call has to give where there are several tasks."""
    by_prompt: ClassVar[bool] = False
    """Whether it routes by the mean of a row's prompt embeddings, which the core measures and keeps with the cache."""
    router: ClassVar[tuple[str, ...]] = ()
    """The names of the router's parameters."""
    mixed: ClassVar[tuple[str, ...]] = ()
    """The names of the experts' parameters, which are mixed."""
    named: ClassVar[bool] = False
    """Whether its experts bear the names of tasks, so that a router can be told the expert of a row."""

    neutral: ClassVar[Mapping[str, Any]] = {}
    """Settings at which it has one expert and equals that expert."""

    train: Literal["all", "router"] = field(default="all", kw_only=True)
    """What is trained: all, or the router alone, while the experts stay as they are."""

    def untrained(self) -> tuple[str, ...]:
        return (*self.frozen, *(self.mixed if self.train == "router" else ()))

    def known(self) -> tuple[str, ...]:
        """Returns the names of the tasks, in order; of its experts, where it does not route by the task."""
        raise NotImplementedError(f"{type(self).__name__} must define known")

    def route(self, p: Params, x: Tensor) -> Tensor:
        """Returns the experts' logits: [..., experts] for x [..., d_in], or by task [rows, heads, experts]."""
        raise NotImplementedError(f"{type(self).__name__} must define route")

    def weights(self, logits: Tensor) -> Tensor:
        """Returns the experts' weights, of the shape of `logits`; they sum to 1 over the last axis."""
        raise NotImplementedError(f"{type(self).__name__} must define weights")

    def asks_tasks(self) -> bool:
        """Returns whether training needs the task of each row (the column `task`)."""
        return self.by_task and len(self.known()) > 1

    def sends(self) -> tuple[int, int] | None:
        """Returns (experts, how many of them a token is sent to), where that is not all of them; default: None."""
        return None

    def balance(self, routed: Sequence[Tensor], batch: RoutedBatch) -> Tensor | None:
        """Returns what training adds to the objective's loss, weighed; None (the default) where that is nothing.

        `routed` are the logits of each site in a pass, [rows, tokens, experts] or [tokens, experts].
        """
        return None

    def at_start(self, p: Params) -> dict[str, Tensor]:
        """Returns new values of untrained parameters as training begins, also on a further task; default: none."""
        return {}

    def after_step(self, p: Params, load: Tensor) -> dict[str, Tensor]:
        """Returns new values of untrained parameters after a step, in which its experts bore `load` [experts]."""
        return {}

    def load(self, logits: Tensor) -> Tensor:
        """Returns the share of the weight that each expert bears, [experts]; logits [..., experts]."""
        return self.weights(logits.detach()).float().flatten(0, -2).mean(0)


@dataclass(frozen=True)
class RoutedBatch:
    """What a balance loss may know of the batch."""

    real: Tensor | None = None
    """True for real tokens, [rows, tokens]; None where all are."""
    tasks: Tensor | None = None
    """The index of each row's task among the names that the form knows, [rows]; None where rows have none."""

    def tokens(self, logits: Tensor) -> Tensor:
        """Returns the logits of real tokens, [n, experts]."""
        real = self.real
        if real is None or logits.shape[:-1].numel() != real.numel() or logits.dim() > 3:
            return logits.flatten(0, -2)
        return logits.flatten(0, -2)[real.flatten()]


def routing(form: Form, note: Callable[[Tensor], None] | None = None) -> Callable[..., Tensor]:
    """Returns the edit function of a form; a routed form is given its logits, which `note` is called with."""
    if not isinstance(form, Routed):
        return edit_function_of(form)

    def edit_function(p: Params, x: Tensor, *given: Any) -> Tensor:
        logits = form.route(p, x)
        if note is not None:
            note(logits)
        return edit_function_of(form)({**p, ROUTE: logits}, x, *given)

    return edit_function


def names_of(form: Form) -> tuple[str, ...]:
    """Returns the task names that a form routes by; empty where it does not."""
    return form.known() if isinstance(form, Routed) and form.by_task else ()


def place(names: Sequence[str], told: str) -> int:
    """Returns the index of a task among the names; an unknown name raises with near ones."""
    if told not in names:
        raise LuthierError(f"no task {told!r}{near(told, names)} The adapter knows: {', '.join(names) or 'none'}.")
    return names.index(told)


def tasks_of(form: Routed, told: Told | None, x: Tensor) -> Tensor | None:
    """Returns the index of each row's task, [rows of x] or [1]; None where the form has a single task.

    Beams repeat each row. Raises `LuthierError` where no tasks were given, or tasks that do not fit x.
    """
    names = form.known()
    if len(names) < 2:
        for each in [] if told is None or isinstance(told, Tensor) or not names else listed(told):
            place(names, each)
        return None
    if told is None:
        raise LuthierError(
            f"{form.name()} routes by the task, and none was given; call model(…, tasks=…), or within lt.tasks(model, "
            f"…). It knows: {', '.join(names)}."
        )
    index = told if isinstance(told, Tensor) else torch.tensor([place(names, each) for each in listed(told)])
    return for_rows(index.to(x.device), x, "tasks")


def for_rows(given: Tensor, x: Tensor, what: str) -> Tensor:
    """Returns what each row was given, [rows of x, ...] or [1, ...]; beams repeat each row.

    Raises `LuthierError` where the rows do not fit x.
    """
    if len(given) == 1:
        return given
    if len(x) % len(given) or (x.dim() < 3 and len(x) != len(given)):
        raise LuthierError(f"{len(given)} rows were given {what}, but the activation has {len(x)} rows.")
    return given.repeat_interleave(len(x) // len(given), dim=0)


def adapter_and_task(asked: str) -> tuple[str, str | None]:
    """Returns (adapter, task) of a row that is asked of `adapter` or of `adapter:task`."""
    adapter, colon, task = asked.partition(":")
    return adapter, task if colon else None


def listed(told: str | Sequence[str]) -> Sequence[str]:
    """Returns the tasks that were told, one or several, as a sequence."""
    return [told] if isinstance(told, str) else told


@dataclass(frozen=True, eq=False)
class Route:
    """The routing decision of one site in one forward pass."""

    path: str
    form: Routed
    logits: Tensor
    """As `Routed.route` gives them."""
    adapter: str = ""
    """The name of the adapter."""
    layer: int | None = None
    """The index of the site's block."""
