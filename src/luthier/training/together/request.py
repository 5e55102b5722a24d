"""What a loss asks of a shared pass, and the one pass that answers several of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.adapters.attach import find_state, state_of
from luthier.core.adapters.call import Prompt
from luthier.core.adapters.control import prompted, rows, tasks_by_adapter, watched
from luthier.core.contracts.objective import TASKS
from luthier.core.contracts.router import Route
from luthier.core.errors import LuthierError
from luthier.methods.log_probs import of_targets, target_log_probs
from luthier.methods.shared_pass import SharedPass
from luthier.training.together.turns import ask

TAKEN = ("input_ids", "attention_mask", "labels", TASKS)
"""What a batch may hold in a shared pass."""


@dataclass(eq=False)
class Request:
    """Rows of one adapter that are to go through the model."""

    name: str | None
    ids: Tensor
    """The token ids [rows, T], padded behind."""
    mask: Tensor
    ends: list[int]
    """Where the prompt of each row ends, for forms with positions."""
    targets: Tensor | None = None
    """The tokens [rows, T] whose log-probabilities are asked for; None: logits are."""
    temperature: float = 1.0
    entropy: bool = False
    tasks: Sequence[str] | None = None
    """The task of each row, for an adapter that routes by it."""
    told: Sequence[bool] | None = None
    """Whether the user said where the prompt of each row ends; None: labels or targets say so, of all."""

    def named(self) -> list[str | None]:
        """Returns the adapter of each row, with its task."""
        if self.name is None or self.tasks is None:
            return [self.name] * len(self.ids)
        return [f"{self.name}:{task}" for task in self.tasks]


@dataclass
class Answered:
    """What a shared pass gave for a request, of its own width."""

    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    logits: Tensor | None = None
    routes: list[Route] = field(default_factory=list)


def answered(model: Any, requests: Sequence[Request]) -> list[Answered]:
    """Runs the rows of all requests in one pass, each with its own adapter; those of one adapter lie side by side."""
    names = [each.name for each in requests]
    order = sorted(range(len(requests)), key=lambda number: names.index(names[number]))
    found = dict(zip(order, _in_order(model, [requests[number] for number in order]), strict=True))
    return [found[number] for number in range(len(requests))]


def _in_order(model: Any, requests: Sequence[Request]) -> list[Answered]:
    width = max(each.ids.shape[1] for each in requests)
    wide = lambda t, blank: nn.functional.pad(t, (0, width - t.shape[1]), value=blank)  # noqa: E731
    batch = {
        "input_ids": torch.cat([wide(each.ids, 0) for each in requests]),
        "attention_mask": torch.cat([wide(each.mask, 0) for each in requests]),
    }
    ends = [end for each in requests for end in each.ends]
    if find_state(model) is None:
        return _numbers(model, batch, requests, wide)
    whose = [name for each in requests for name in each.named()]
    told = [said for each in requests for said in each.told or [False] * len(each.ids)]
    ended = Prompt(torch.tensor(ends), told=torch.tensor(told))
    with rows(model, whose), prompted(model, ended), watched(model) as routes:
        found = _numbers(model, batch, requests, wide)
    for each, own in zip(requests, found, strict=True):
        own.routes = [_narrow(r, width, each.ids.shape[1]) for r in routes if r.adapter == each.name]
    return found


def _numbers(model: Any, batch: dict[str, Tensor], requests: Sequence[Request], wide: Callable) -> list[Answered]:
    alike = {each.temperature for each in requests}
    if len(alike) == 1 and all(each.targets is not None for each in requests):
        targets = torch.cat([wide(each.targets, -100) for each in requests])
        asked = any(each.entropy for each in requests)
        logs, spread = target_log_probs(model, batch, targets, alike.pop(), asked)
        return [Answered(a, b) for a, b in zip(_split(logs, requests), _split(spread, requests), strict=True)]
    found = []
    for each, logits in zip(requests, _split(model(**batch).logits, requests), strict=True):
        if each.targets is None:
            found.append(Answered(logits=logits.contiguous()))  # losses look at it as one run of memory
        else:
            found.append(Answered(*of_targets(logits, each.targets, each.temperature, each.entropy)))
    return found


def _split(values: Tensor, requests: Sequence[Request]) -> list[Tensor]:
    parts = values.split([len(each.ids) for each in requests])
    return [part[:, : each.ids.shape[1]] for part, each in zip(parts, requests, strict=True)]


def _narrow(route: Route, width: int, own: int) -> Route:
    """A routing decision without the padding that the rows of others brought."""
    padded = route.logits.dim() == 3 and route.logits.shape[1] == width
    logits = route.logits[:, :own] if padded else route.logits
    return Route(route.path, route.form, logits, route.adapter, route.layer)


class Alone(LuthierError):
    """Raised for an adapter that cannot share passes with others, and is to be trained by itself."""


class Asking(SharedPass):
    """The model of one adapter's loss: its passes wait for those of the others."""

    def __init__(self, model: nn.Module, name: str | None, shared: str | None = None) -> None:
        """`shared` is what the adapter is called in the shared pass, where that is another copy of the model."""
        super().__init__(model)
        self.name, self.shared = name, shared or name
        vars(self)["_luthier"] = find_state(model)  # what records routing decisions finds the adapters here

    def token_log_probs(self, batch, temperature=1.0, entropy=False):
        targets = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
        found = self._ask(batch, targets, temperature, entropy)
        return found.log_probs[:, :-1], found.entropy[:, :-1].detach()  # pyright: ignore[reportOptionalSubscript]

    def forward(self, **batch: Any) -> Any:
        logits, labels = self._ask(batch).logits, batch.get("labels")
        assert logits is not None
        inner: Any = self.inner
        loss = None if labels is None else inner.loss_function(logits, labels, vocab_size=logits.shape[-1])
        return SimpleNamespace(logits=logits, loss=loss)

    def _ask(self, batch: Mapping[str, Any], targets: Tensor | None = None, *more: Any) -> Answered:
        if strange := [key for key in batch if key not in TAKEN]:
            raise Alone(
                f"the batch of {self.name!r} holds {strange[0]!r}, which a shared pass does not take (it takes "
                f"{', '.join(TAKEN)}); train this adapter by itself."
            )
        ids = batch["input_ids"]
        mask = batch.get("attention_mask", torch.ones_like(ids))
        request = Request(self.shared, ids, mask, ends_of(batch, mask), targets, *more, tasks=self._tasks(batch))
        found = self._wait(request)
        recorded = state_of(self.inner).current.routes
        if recorded is not None:
            recorded += [replace(route, adapter=self.name or "") for route in found.routes]
        return found

    def _wait(self, request: Request) -> Answered:
        """Asks; while others run, a context that this loss is in (`watched`) does not keep the model to itself."""
        passes = state_of(self.inner).passes
        held = passes.holder, passes.who
        passes.holder, passes.who = None, ""
        try:
            return ask(request)
        finally:
            passes.holder, passes.who = held

    def _tasks(self, batch: Mapping[str, Any]) -> list[str] | None:
        """The names of the rows' tasks, where the adapter goes by them."""
        known = tasks_by_adapter(state_of(self.inner), self.name) if self.name is not None else ()
        if not known or TASKS not in batch:
            return None
        return [known[index] for index in batch[TASKS].tolist()]


def ends_of(batch: Mapping[str, Any], mask: Tensor) -> list[int]:
    """Returns where prompts end: at the first token in the loss, as in a pass that is not shared."""
    if (labels := batch.get("labels")) is None:
        return [mask.shape[1]] * len(mask)
    first = labels.ne(-100).int().argmax(1)
    return torch.where(first > 0, first, labels.shape[1]).tolist()
