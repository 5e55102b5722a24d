"""What a model prefers: pairs of a chosen and a rejected answer, compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from luthier import data, models
from luthier.core.adapters.attach import find_state
from luthier.core.adapters.control import disabled, routed
from luthier.core.contracts.objective import ALSO, Feature
from luthier.core.sites.probe import eval_mode

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Read = Callable[[dict[str, Any]], "list[Tensor]"]
"""Numbers of each row of a batch, [rows] each."""


def compared(
    model: Any,
    processor: Any,
    examples: data.Examples,
    *,
    task: str,
    batch: int,
    max_length: int | None,
    tasks: list[str] | None,
    done: Callable[[int], Any],
) -> tuple[np.ndarray, list[str]]:
    """Returns (numbers [pairs, 2, columns] of the chosen and the rejected answers, the names of the columns).

    Of a language model `log_prob`, the log-probability of the answer, `tokens`, its length, and with an adapter
    `reward`, log π/π_ref against the base (β = 1); of a reward model its `reward`.
    """
    import numpy as np

    positions = models.positions(model)
    features = data.encode_all(
        examples, processor, task=task, max_length=max_length, positions=positions, pictures=True
    )
    pairs = [[feature, *feature[ALSO]] for feature in features]
    names, read = (["reward"], _scalar(model)) if task == "reward" else _written(model)
    found = np.zeros((len(pairs), 2, len(names)))
    order = sorted(range(len(pairs)), key=lambda i: data.length_of(features[i]), reverse=True)
    collator = data.collator_for(task, processor)
    with eval_mode(model):
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            inputs = _inputs(collator, [each for i in chosen for each in pairs[i]], model)
            with routed(model, tasks and [tasks[i] for i in chosen for _ in range(2)]):
                columns = [values.double().cpu().numpy() for values in read(inputs)]
            found[chosen] = np.stack(columns, -1).reshape(len(chosen), 2, -1)
            done(len(chosen))
    return found, names


def _inputs(collator: data.Collator, rows: Sequence[Feature], model: Any) -> dict[str, Any]:
    plain = [{key: value for key, value in row.items() if key != ALSO} for row in rows]
    inputs = collator(plain)
    inputs.pop("rows")
    return {key: value.to(model.device) for key, value in inputs.items()}


def _scalar(model: Any) -> Read:
    def read(inputs: dict[str, Any]) -> list[Tensor]:
        return [model(**{key: value for key, value in inputs.items() if key != "labels"}).logits[:, 0]]

    return read


def _written(model: Any) -> tuple[list[str], Read]:
    from luthier.methods.log_probs import log_probs

    adapted = acts(model)

    def read(inputs: dict[str, Any]) -> list[Tensor]:
        sums, tokens = log_probs(model, inputs)
        if not adapted:
            return [sums, tokens]
        with disabled(model):
            return [sums, tokens, sums - log_probs(model, inputs)[0]]

    return ["log_prob", "tokens", *(["reward"] if adapted else [])], read


def acts(model: Any) -> bool:
    """Whether adapters act on a model whose base can still be asked."""
    state = find_state(model)
    return state is not None and not state.merged and any(container.acting for container in state.containers)


def figures(found: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Returns the figures of pairs, the score first.

    `accuracy` is the share of pairs whose chosen answer has the higher reward, `margin` the mean difference of the
    rewards; `likelier` the share whose chosen answer is the likelier one, `likelier_per_token` by the mean over its
    tokens.
    """
    column = {name: found[..., index] for index, name in enumerate(names)}
    told: dict[str, float] = {}
    if "reward" in column:
        rewards = column["reward"]
        told["accuracy"] = float((rewards[:, 0] > rewards[:, 1]).mean())
        told["margin"] = float((rewards[:, 0] - rewards[:, 1]).mean())
        told |= {"reward_chosen": float(rewards[:, 0].mean()), "reward_rejected": float(rewards[:, 1].mean())}
    if "log_prob" in column:
        sums, means = column["log_prob"], column["log_prob"] / column["tokens"]
        told["likelier"] = float((sums[:, 0] > sums[:, 1]).mean())
        told["likelier_per_token"] = float((means[:, 0] > means[:, 1]).mean())
        told |= {f"tokens_{side}": float(column["tokens"][:, i].mean()) for i, side in enumerate(SIDES)}
    return told


SIDES = ("chosen", "rejected")


def listed(found: np.ndarray, names: Sequence[str], rows: Sequence[int]) -> list[dict[str, Any]]:
    """Returns `{"row", "chosen": {…}, "rejected": {…}, "score"}` of each pair."""
    decisive = names.index("reward") if "reward" in names else 0
    return [
        {
            "row": row,
            **{side: dict(zip(names, values.tolist(), strict=True)) for side, values in zip(SIDES, pair, strict=True)},
            "score": float(pair[0, decisive] > pair[1, decisive]),
        }
        for row, pair in zip(rows, found, strict=True)
    ]
