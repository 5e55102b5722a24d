"""What a form that reads whole rows is given: the model's input, its padding, and what its blocks gave."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.adapters.call import Call
from luthier.core.contracts.form import ROW_INPUT, ROW_MASK, ROW_STATES, Form
from luthier.core.errors import LuthierError


@dataclass(eq=False)
class RowInput:
    """The input of a model's running pass and the states that were noted in it."""

    given: Tensor | None
    """Ids [rows, tokens], or pictures, sounds, spectrograms [rows, ...]; None where the model was given another."""
    mask: Tensor | None
    """The padding mask, [rows, tokens or samples], where there is one."""
    states: list[Tensor] = field(default_factory=list)
    """What the blocks gave so far, [rows, tokens, d] each, where a form reads them."""

    def of_rows(self, rows: Tensor) -> RowInput:
        """Returns the same of some of the rows."""
        take = lambda t: None if t is None else t[rows.to(t.device)]  # noqa: E731
        return RowInput(take(self.given), take(self.mask), [state[rows.to(state.device)] for state in self.states])


def row_input(model: nn.Module, arguments: dict[str, Any]) -> RowInput:
    """Reads the input of a pass from the arguments of the model."""
    given, mask = arguments.get(getattr(model, "main_input_name", "input_ids")), arguments.get("attention_mask")
    two = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
    return RowInput(given if isinstance(given, Tensor) else None, two)


def call_of_frames(call: Call | None, arguments: dict[str, Any]) -> Call | None:
    """Returns the call of a stack whose owner was given samples, and which is given fewer frames of them.

    What runs the blocks is given frames, and where some are padding, a mask of frames (wav2vec 2.0 and the like).
    """
    x, mask = next(iter(arguments.values()), None), arguments.get("attention_mask")
    if not isinstance(x, Tensor) or x.dim() != 3 or call is None or call.length == x.shape[1]:
        return call
    fits = isinstance(mask, Tensor) and mask.shape == x.shape[:2]
    return replace(call, length=x.shape[1], mask=mask) if fits else call


def what_is_read(form: Form, seen: RowInput | None, call: Call | None, y: Tensor) -> dict[str, Tensor]:
    """Returns what the form reads beside its parameters, for the output y [rows, ...] of its place.

    Raises `LuthierError` where the padding of y is not known, or the pass has no such rows.
    """
    mask = call.mask if call is not None else seen.mask if seen is not None else None
    found = {} if mask is None else {ROW_MASK: _fitting(form, mask, call, y)}
    if "input" not in form.sees:
        return {key: each for key, each in found.items() if each is not None}
    if seen is None or seen.given is None or len(seen.given) != len(y):
        raise LuthierError(
            f"{form.name()} reads the model's input, and this pass has none for each of its {len(y)} rows; give the "
            "model its ids, pictures or sounds, not embeddings of them."
        )
    states = [seen.states[layer] for layer in form.layers_read(len(seen.states))]
    found |= {ROW_INPUT: seen.given} | ({ROW_STATES: torch.stack(states)} if states else {})
    return {key: each for key, each in found.items() if each is not None}


def _fitting(form: Form, mask: Tensor, call: Call | None, y: Tensor) -> Tensor | None:
    """The mask where it is that of y's tokens or of the model's input; None where nothing is padded."""
    if (call is None and "input" in form.sees) or (y.dim() > 2 and mask.shape == y.shape[:2]):
        return mask.bool()
    if torch.compiler.is_compiling() or bool(mask.bool().all()):
        return None
    raise LuthierError(
        f"{form.name()} reads whole rows, and the padding of its {tuple(y.shape[:-1])} tokens is not known (the batch "
        f"was padded to {mask.shape[1]}); use a batch of one row, or rows of one length."
    )
