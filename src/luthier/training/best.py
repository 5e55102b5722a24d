"""The best evaluation of a run: its adapter is kept, and training stops when none has been better for long enough."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from luthier.core.adapters.control import tensors
from luthier.core.errors import LuthierError
from luthier.core.files import committed
from luthier.core.guard import guarded
from luthier.core.records import recorded, write_json

if TYPE_CHECKING:
    from luthier.training.spec import Run

FOLDER, TENSORS, STATE = "best", "adapter.safetensors", "best.json"
LESS = ("loss", "mse", "wer", "cer", "wer_plain")
"""Figures of which less is better; of all others more is."""


class Best(TrainerCallback):
    """Keeps the adapter of the best evaluation so far, and ends training after `patience` that were not better.

    What it knows is on disk before the checkpoint of the same step, which it asks for: a resumed run goes on with it.
    """

    def __init__(self, run: Run, model: Any, writes: bool) -> None:
        self.run, self.model, self.writes = run, model, writes
        self.folder = run.folder / "checkpoints" / FOLDER
        self.values: list[tuple[int, float]] = []
        """(step, value) of every evaluation."""

    def resumed(self, step: int) -> bool:
        """Reads what was known at a checkpoint; returns whether training had stopped."""
        if not (self.folder / STATE).is_file():
            return False
        with recorded(self.folder / STATE) as held:
            if held["metric"] != self.run.training.best:
                return False
            self.values = [(at, value) for at, value in held["values"] if at <= step]
        return self._spent() and step == self.values[-1][0]

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Looks at an evaluation."""
        name = f"eval_{self.run.training.best}"
        if name not in (metrics or {}):
            known = ", ".join(key.removeprefix("eval_") for key in metrics or {} if key.startswith("eval_"))
            raise LuthierError(f"best is {self.run.training.best!r}, and an evaluation of this run tells: {known}.")
        self.values = [each for each in self.values if each[0] < state.global_step]
        self.values.append((state.global_step, float(metrics[name])))
        if self.writes:
            self._keep(state.global_step)
        control.should_save = True
        if self._spent():
            control.should_training_stop = True

    def _keep(self, step: int) -> None:
        own = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors(self.model, self.run.name).items()}
        kept = {self.at(), self.at(self.values[:-1]) if len(self.values) > 1 else step}
        with committed(self.folder) as new:
            for number in kept - {step}:
                if (self.folder / f"{number}.{TENSORS}").is_file():
                    shutil.copy2(self.folder / f"{number}.{TENSORS}", new)
            if step in kept:
                save_file(own, new / f"{step}.{TENSORS}")
            write_json(new / STATE, {"metric": self.run.training.best, "values": self.values})

    def at(self, values: list[tuple[int, float]] | None = None) -> int:
        """Returns the step of the best evaluation, of equal ones the first."""
        sign = 1 if self.run.training.best in LESS else -1
        return min(self.values if values is None else values, key=lambda each: (sign * each[1], each[0]))[0]

    def _spent(self) -> bool:
        patience = self.run.training.patience
        if patience is None or not self.values:
            return False
        best = self.at()
        return sum(step > best for step, _ in self.values) >= patience

    def restore(self) -> dict[str, Any]:
        """Puts the best adapter into the model; returns what is told of it (nothing without an evaluation)."""
        import torch

        if not self.values:
            return {}
        step = self.at()
        own = tensors(self.model, self.run.name)
        with guarded(f"{self.folder}, the adapter of the best evaluation (step {step}), cannot be read"):
            stored = load_file(self.folder / f"{step}.{TENSORS}")
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(stored[key])
        return {"metric": self.run.training.best, "step": step, "value": dict(self.values)[step]}
