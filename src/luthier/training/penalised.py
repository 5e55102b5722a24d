"""What acts on gradients between the backward pass and clipping: the penalty of a run, and rows of earlier tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from luthier.core.contracts.penalty import Penalty, PenaltyState, PenaltyStep, copies
from luthier.core.contracts.update import Update
from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.training.spec import Run

STATE = "penalty.safetensors"
"""The file of a checkpoint that holds a penalty's running state."""


class Penalised(TrainerCallback):
    """The penalty of a run at work: it adds to the gradients before clipping, and follows the steps."""

    def __init__(self, penalty: Penalty, params: Mapping[str, nn.Parameter]) -> None:
        """`params` are the trained tensors by name."""
        self.penalty, self.params = penalty, params
        self.kept: PenaltyState = {}
        """What is known of earlier tasks; set before the first step."""
        self.running: PenaltyState | None = None
        self.pending: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
        """(the loss's own gradient, the tensors) of the step under way."""

    def begun(self) -> PenaltyState:
        """Returns the running state, which begins at its first use."""
        if self.running is None:
            self.running = self.penalty.begin(self.params, self.kept)
        return self.running

    def after_backward(self) -> None:
        """Adds the penalty's gradient to the loss's own."""
        state = {**self.kept, **self.begun()}
        own = {key: p.grad for key, p in self.params.items() if p.grad is not None}
        self.pending = copies(own), copies(self.params)
        for key, gradient in self.penalty.gradient(self.params, state).items():
            if (grad := self.params[key].grad) is not None:
                grad += gradient

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Shows the penalty the step that was made."""
        if self.pending is not None:
            gradient, before = self.pending
            step = PenaltyStep(state.global_step + 1, gradient, before, copies(self.params))
            self.penalty.follow(self.begun(), step)
            self.pending = None

    def finish(self, fisher: Mapping[str, Tensor]) -> PenaltyState:
        """Returns what is kept after the task."""
        return self.penalty.finish(self.kept, self.begun(), self.params, fisher)

    def save(self, folder: Path) -> None:
        """Writes the running state beside a checkpoint's tensors."""
        write_state(self.begun(), folder / STATE)

    def load(self, folder: Path) -> None:
        """Reads it back."""
        self.running = self.placed(read_state(folder / STATE))

    def placed(self, state: PenaltyState) -> PenaltyState:
        """Returns a state on the devices of the parameters; raises where it is of other tensors."""
        for key in (key for held in state.values() for key in held):
            if key not in self.params:
                raise LuthierError(f"what {self.penalty.name()} keeps of earlier tasks is of another adapter: {key}.")
        return {
            kind: {key: tensor.to(self.params[key].device) for key, tensor in held.items()}
            for kind, held in state.items()
        }


def write_state(state: PenaltyState, path: Path) -> None:
    """Writes a penalty's state as one safetensors file."""
    flat = {f"{kind}/{key}": t.detach().cpu().contiguous() for kind, held in state.items() for key, t in held.items()}
    save_file(flat, path)


def read_state(path: Path) -> PenaltyState:
    """Reads what `write_state` wrote; raises `LuthierError` for a file that is missing or damaged."""
    with guarded(f"{path}, what the penalty keeps, cannot be read"):
        flat = load_file(path)
    state: PenaltyState = {}
    for name, tensor in flat.items():
        kind, _, key = name.partition("/")
        state.setdefault(kind, {})[key] = tensor
    return state


def project(update: Update, params: Mapping[str, nn.Parameter], reference: Callable[[], Mapping[str, Tensor]]) -> None:
    """Puts in place of the gradients what the update makes of them and of those on rows of earlier tasks."""
    grads = {key: p.grad for key, p in params.items() if p.grad is not None}
    for key, grad in update.project(grads, reference()).items():
        params[key].grad = grad


def refuse_alone(run: Run) -> None:
    """Raises for a penalty or an update that goes by earlier tasks, in a run that has none."""
    chosen = [run.penalty] if run.penalty is not None and run.penalty.remembers else []
    for each in (*chosen, *([run.update] if run.update.rehearses else [])):
        raise LuthierError(
            f"{each.name()} goes by tasks that were trained before, and this run has one set of rows: it would do "
            f"nothing. Fit a sequence of tasks: luthier continue MODEL --tasks A B --by {each.name()}."
        )
