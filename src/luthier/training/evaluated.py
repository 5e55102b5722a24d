"""A Trainer whose evaluations give the objective's own means, and the figures of a task beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from luthier.core.contracts.objective import At, Batch, labels_of
from luthier.training.checkpointed import Checkpointed
from luthier.training.figures import FigureSums
from luthier.training.judged import Judge


class Evaluated(Checkpointed):
    """Evaluates by what the run's objective is, in float64, over all processes."""

    shifted: bool
    """Whether a row's first label has no prediction."""
    teacher: Callable[[Batch], Tensor] | None
    """The teacher's logits, where the objective has one."""
    judging: Callable[[], Judge] | None
    """What compares the model's own answers with the labels in an evaluation, where the task has such."""
    apart: Sequence[Callable[[], dict[str, float]]]
    """What else tells figures in an evaluation, by passes of its own."""

    def token_counts(self, batch: dict[str, Any]) -> Tensor:
        """Returns the counts over which the means of a batch are taken, [parts]."""
        return self.run.objective.token_counts(batch, labels_of(batch, self.shifted))

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):  # pyright: ignore
        """Returns `{"eval_loss": …}`, the objective's own over the evaluation rows, parts weighed as at the start, and
        the objective's figures."""
        with self.average.averaged() if self.average is not None else nullcontext():
            return self._measured(metric_key_prefix)

    def _measured(self, metric_key_prefix: str) -> dict[str, float]:
        figures, metrics = FigureSums(self.run.objective.curves), {}
        if self.run.objective.evaluates:
            judge = self.judging() if self.judging is not None else None
            with judge.watching(self.model) if judge is not None else nullcontext():  # pyright: ignore
                means, counts = self.measure(self.get_eval_dataloader(), figures, judge)
            metrics = {f"{metric_key_prefix}_loss": float((means * self.run.objective.part_weights(counts, {})).sum())}
            metrics |= {
                f"{metric_key_prefix}_{n}": v for n, v in (judge.figures() if judge is not None else {}).items()
            }
        told = self.means(figures)
        for further in self.apart:
            told |= further()
        if self.online is not None:
            told |= self.online.held_reward(list(self.get_eval_dataloader()), self.state.global_step)
        metrics |= {f"{metric_key_prefix}_{name}": value for name, value in told.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def means(self, figures: FigureSums) -> dict[str, float]:
        """Returns the means of figures over all processes."""
        if not figures.sums:
            return {}
        return figures.means(self._over_processes(figures.held()))

    def _over_processes(self, sums: Tensor) -> Tensor:
        """The sums of all processes, in float64 on the CPU. One alone moves nothing: not every device has float64."""
        if self.accelerator.num_processes == 1:
            return sums
        return self.accelerator.reduce(sums.to(self.args.device), "sum").cpu()  # pyright: ignore

    def measure(
        self, batches: Iterable[Any], figures: FigureSums | None = None, judge: Judge | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the mean loss of each part (0 where it has no rows) and its count, [parts] each, over `batches`.

        The objective's figures are added to those given, and what the model said to the `judge`.
        """
        model: Any = self.model
        objective = self.run.objective
        at = At(self.state.global_step, self.state.max_steps, False, self.teacher)
        model.eval()
        found = []
        for batch in batches:
            inputs = self._prepare_inputs(batch)
            rows: Any = inputs.pop("rows")
            counts = self.token_counts(inputs).cpu().double()
            with torch.no_grad():
                means, told = objective.loss_and_figures(model, objective.inputs(inputs, at))
            means = means.cpu().double()
            if figures is not None:
                figures.add(told)
            if judge is not None:
                judge.add(rows, inputs["labels"])
            found.append(torch.stack([means * counts, counts]))
        model.train()
        total, counts = self._over_processes(torch.stack(found).sum(0))
        if judge is not None and self.accelerator.num_processes > 1:
            judge.gather()
        return total / counts.clamp(min=1), counts
