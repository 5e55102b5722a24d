"""The Trainer: transformers' own, with the loss of an objective, exact means, and atomic checkpoints."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers.trainer_callback import PrinterCallback

from luthier.core.adapters.control import trainable
from luthier.core.adapters.optimiser import optimiser
from luthier.core.contracts.objective import At, Batch, ObjectiveState
from luthier.core.errors import LuthierError
from luthier.core.sites.probe import eval_mode
from luthier.data import Collator, sizes_of
from luthier.methods.noise import noisy
from luthier.training.context import running_norms
from luthier.training.evaluated import Evaluated
from luthier.training.figures import FigureSums
from luthier.training.judged import Judge
from luthier.training.loss_scale import LossScale
from luthier.training.noise_scale import NoiseScale
from luthier.training.optimisers import OWN, average_of
from luthier.training.order import ByLength, Repeated
from luthier.training.penalised import Penalised, project
from luthier.training.rollouts.online import Online
from luthier.training.rollouts.slopes import slopes_of
from luthier.training.routing import Routers
from luthier.training.schedule import is_plain, restarting
from luthier.training.spec import Run

OVERFLOWS = " It is computed in float16, which ends at 65,504; bfloat16 and float32 (precision) have a wider range."


class Diverged(LuthierError):
    """Raised when the loss, or the norm of its gradient, is no longer a finite number."""


class Trainer(Evaluated):
    """Trains the adapter `run.name` of a model on features; everything else is transformers' own.

    The objective's means of each batch are weighted by its share in the step, over accumulated batches and processes,
    so a step's loss and gradient are those of the step's rows in a single batch (see `core/contracts/objective.py`).
    """

    def __init__(
        self,
        run: Run,
        model: Any,
        args: transformers.TrainingArguments,
        features: tuple[Sequence[dict], Sequence[dict]],
        collator: Collator,
        shifted: bool,
        callbacks: Sequence[transformers.TrainerCallback],
        run_id: str = "",
        per_epoch: int | None = None,
    ) -> None:
        """`features` are (training, evaluation) rows; with `shifted` labels, a row's first one has no prediction.
        `per_epoch` is the number of steps in an epoch.

        Checkpoints bear the `run_id`.
        """
        self.run, self.shifted, self.run_id, self.per_epoch = run, shifted, run_id, per_epoch
        if run.training.shard:
            model._is_accelerate_prepared = True  # accelerate would wrap it once more
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=features[0],  # pyright: ignore[reportArgumentType]
            eval_dataset=features[1] or None,  # pyright: ignore[reportArgumentType]
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)
        self.root = run.folder / "checkpoints"
        self.objective_state: ObjectiveState = {}
        """The state that the objective keeps of its evaluations; `looks` counts them."""
        self.looks = 0
        self.resumes = False
        """Whether a checkpoint was loaded, whose optimiser state follows."""
        self.teacher: Callable[[Batch], Tensor] | None = None
        self.online: Online | None = None
        """What samples the answers of each step, where the objective learns from such."""
        self.tokens = 0
        """Tokens seen by this process."""
        self.rows: list[int] = []
        """Rows of the current step."""
        self.figures = FigureSums(run.objective.curves)
        """Figures of the current step."""
        self.judging: Callable[[], Judge] | None = None
        self.apart: list[Callable[[], dict[str, float]]] = []
        self.noise = NoiseScale() if run.training.noise_scale else None
        self.share = (1.0, 0)
        """The share of the last batch in the means of its step, and its rows."""
        self.noise_told: dict[str, float] = {}
        self.loss_scale = LossScale() if run.training.precision == "float16" else None
        self.norms = running_norms(model)
        self.routers = Routers(model, run.name)
        self.penalised = None if run.penalty is None else Penalised(run.penalty, trainable(model))
        self.rehearsal: Callable[[int], Batch] | None = None
        """Rows of earlier tasks for a step, for an update that goes by their gradient."""
        if self.penalised is not None:
            self.add_callback(self.penalised)
        self.average = average_of(run, model)
        if self.average is not None:
            self.add_callback(self.average)
        self.model_accepts_loss_kwargs = True  # so it counts the labels and divides nothing itself
        self.loss_is_scaled_for_ga = True

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not self.run.training.shard:  # a sharded base is where it is to be
            super()._move_model_to_device(model, device)

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        """Rows at random, or in groups of like length that the processes share."""
        rows: Any = self.train_dataset
        group = self.args.train_batch_size * self.args.world_size
        rollouts = self.run.objective.rollouts(self.args.max_steps, self.run.training.seed)
        if rollouts is not None and rollouts.iterations > 1:
            step = group * self.args.gradient_accumulation_steps
            return Repeated(len(rows), step, rollouts.iterations, self.run.training.seed)
        if self.run.training.order == "random":
            return super()._get_train_sampler(train_dataset)
        return ByLength(sizes_of(rows).width.tolist(), group, self.run.training.seed)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Creates AdamW, driven by the run's update."""
        if self.optimizer is None:
            trained: Any = self.model
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, trained)
            decayed = set(self.get_decay_parameter_names(trained))
            self.optimizer = optimiser(
                trained,
                self.run.update,
                lr=self.run.lr,
                steps=self.args.max_steps,
                name=self.run.name,
                seed=self.run.training.seed,
                weight_decay=self.run.training.weight_decay,
                undecayed=[p for key, p in trained.named_parameters() if key not in decayed],
                settings=settings,
                resumes=self.resumes,
                epoch=self.per_epoch,
                loss=self.usual_loss,
                logits=self.logits_of,
                optimizer_class=kind,
            )
        return self.optimizer

    def get_optimizer_cls_and_kwargs(self, args, model=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns (class, settings) of the run's optimiser: transformers' choice, or one of Luthier's own."""
        own = OWN.get(self.run.training.optimizer)
        if own is None:
            return super().get_optimizer_cls_and_kwargs(args, model)
        betas = args.adam_beta1, args.adam_beta2
        return own, {"lr": args.learning_rate, "betas": betas, "eps": args.adam_epsilon}

    def usual_loss(self) -> Tensor:
        """Returns the loss of a batch of the first rows, without dropout: an update weighs by it what a step costs."""
        model: Any = self.model
        at = At(0, self.args.max_steps, False, self.teacher)
        with eval_mode(model), torch.enable_grad():
            return self.run.objective.loss(model, self.run.objective.inputs(self._batch(0), at))

    def logits_of(self, number: int) -> Tensor:
        """Returns the logits of a batch of rows, in their order, in the mode that the model is in."""
        model: Any = self.model
        return model(**self._batch(number)).logits

    def _batch(self, number: int) -> dict[str, Any]:
        rows, size = self.train_dataset, self.run.training.batch
        held: Any = rows
        first = number * size
        batch = self._prepare_inputs(self.data_collator([held[i % len(held)] for i in range(first, first + size)]))
        batch.pop("rows")
        return batch

    def create_scheduler(self, num_training_steps: int, optimizer=None) -> Any:
        """Creates the learning-rate schedule, which restarts where the update restarts."""
        turns, own = self.run.update.restarts(num_training_steps), not is_plain(self.run.training)
        if self.lr_scheduler is not None or not (turns or own):
            return super().create_scheduler(num_training_steps, optimizer)
        factor = restarting(self.run.training, self.args.lr_scheduler_type, turns, num_training_steps)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:  # pyright: ignore
        """The counts of the whole step; called once before it."""
        self.rows = []
        if self.online is not None:  # in the very list that the step goes through
            batch_samples[:] = self.online.step(batch_samples, self.state.global_step, self.model)
        self.tokens += sum(int(batch["attention_mask"].sum()) for batch in batch_samples if "attention_mask" in batch)
        self._look()
        self._steer(batch_samples)
        counts = torch.stack([self.token_counts(batch).to(device) for batch in batch_samples]).sum(0)
        return self.accelerator.reduce(counts, "sum")  # pyright: ignore[reportReturnType]

    def _look(self) -> None:
        """Shows the objective the evaluation losses that it wants before this step."""
        objective, step = self.run.objective, self.state.global_step
        wanted = objective.eval_batches(step)
        if wanted == 0:
            return
        means, counts = self.measure(self.get_eval_dataloader() if wanted is None else self._glimpse(wanted))
        self.objective_state = objective.update_state(self.objective_state, step, means.tolist(), counts.tolist())
        self.looks += 1

    def _steer(self, batches: list[dict[str, Any]]) -> None:
        """Shows the objective how the losses of its parts and that of held-out rows pull, where it asks."""
        objective, step = self.run.objective, self.state.global_step
        if not objective.steers(step):
            return
        held = list(self._glimpse(1))
        at = At(step, self.state.max_steps, True, self.teacher)
        slopes = slopes_of(self.model, objective, batches, held, at, self.token_counts, self._prepare_inputs)
        rate = self.optimizer.param_groups[0]["lr"] if self.optimizer is not None else self.run.lr
        self.objective_state = objective.steer(self.objective_state, float(rate), slopes)
        self.looks += 1

    def _glimpse(self, wanted: int) -> Iterator[dict[str, Any]]:
        """That many of the evaluation batches, in an order drawn once, going on where the last look ended."""
        rows: Any = self.eval_dataset
        order = random.Random(self.run.training.seed).sample(range(len(rows)), len(rows))
        size, processes = self.run.training.batch, self.accelerator.num_processes
        for number in range(self.looks * wanted, (self.looks + 1) * wanted):
            first = (number * processes + self.accelerator.process_index) * size
            yield self.data_collator([rows[order[i % len(rows)]] for i in range(first, first + min(size, len(rows)))])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # pyright: ignore
        """Computes the objective's loss, weighted; NaN and infinity stop the run before anything is saved."""
        rows: Any = inputs.pop("rows")
        self.rows += rows
        for norm in self.norms:
            norm.eval()
        objective, totals = self.run.objective, num_items_in_batch
        assert isinstance(totals, Tensor)  # counted above for every step
        shares = objective.part_weights(totals, self.objective_state) * self.token_counts(inputs) / totals.clamp(min=1)
        self.share = (float(shares.sum()) if self.noise is not None else 1.0, len(rows))
        at = At(self.state.global_step, self.state.max_steps, True, self.teacher)
        given = objective.inputs(inputs, at)
        with self.routers.watched() as routes, noisy(model, self.run.training.neftune, given):
            means, figures = objective.loss_and_figures(model, given)
        self.figures.add(figures)
        loss = (means * shares.to(means.dtype)).sum()
        if routes and (balance := self.routers.balance(routes, given)) is not None:
            loss = loss + balance.to(loss.dtype) * (self.token_counts(inputs).sum() / totals.sum().clamp(min=1))
        if not math.isfinite(loss.item()):
            self._stop("loss", loss.item(), rows)
        loss = loss if self.loss_scale is None else self.loss_scale.scaled(loss)
        return loss * self.accelerator.num_processes

    def training_step(self, model, inputs, num_items_in_batch=None):  # pyright: ignore
        """One backward pass; behind the last of a step, the penalty and the update see the whole gradient."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.noise is not None:
            self.noise.batch(trainable(self.model), *self.share)  # pyright: ignore
        if self.accelerator.sync_gradients and self._unscaled():
            self.noise_told = self.noise.step() if self.noise is not None else {}
            if self.rehearsal is not None and self.run.update.rehearses:
                project(self.run.update, trainable(self.model), self._reference)  # pyright: ignore
            if self.penalised is not None:
                self.penalised.after_backward()
        return loss

    def _unscaled(self) -> bool:
        """Divides the gradients of a step by what its loss was multiplied by; False: there are none, it is left out."""
        scale, model = self.loss_scale, self.model
        if scale is None or model is None or scale.unscale(model.parameters()):
            return True
        if scale.spent:
            self._stop("gradient's norm", math.inf, self.rows)
        return False

    def _reference(self) -> dict[str, Tensor]:
        """The gradient of the loss on rows of earlier tasks, by name."""
        assert self.rehearsal is not None and self.model is not None
        inputs: Any = self._prepare_inputs(self.rehearsal(self.state.global_step))  # pyright: ignore
        inputs.pop("rows")
        objective, counts = self.run.objective, self.token_counts(inputs)
        shares = objective.part_weights(counts, self.objective_state) * counts / counts.clamp(min=1)
        at = At(self.state.global_step, self.state.max_steps, True, self.teacher)
        loss = (objective.loss(self.model, objective.inputs(inputs, at)) * shares).sum()
        params = trainable(self.model)
        found = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        return {key: g for key, g in zip(params, found, strict=True) if g is not None}

    def _stop(self, what: str, value: float, rows: list[int]) -> None:
        step = self.state.global_step + (what == "loss")
        raise Diverged(
            f"the {what} became {value} at step {step}, on the rows {', '.join(map(str, rows))} of {self.run.data}. "
            f"Nothing was saved after the last checkpoint. Look at these rows (luthier show), or lower lr "
            f"({self.run.lr:g}), or clip gradients ({self.run.training.clip:g})."
            f"{OVERFLOWS if self.loss_scale is not None else ''}"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Passes `logs` to the callbacks; Trainer's own history, which would grow in every checkpoint, is not kept."""
        if not math.isfinite(logs.get("grad_norm", 0.0)):
            self._stop("gradient's norm", logs["grad_norm"], self.rows)
        if "loss" in logs:
            logs |= (found := self.means(self.figures)) | self.noise_told
            logs |= {} if self.loss_scale is None else {"loss_scale": self.loss_scale.factor}
            self.objective_state = self.run.objective.observe(self.objective_state, self.state.global_step, found)
            logs |= {name: self.objective_state[name] for name in self.figures.sums if name in self.objective_state}
            self.figures = FigureSums(self.run.objective.curves)
        super().log(logs, start_time)
        self.state.log_history.clear()

    def train(self, *args, **kwargs):  # pyright: ignore
        """Trains; behind it the model holds the average, where there is one."""
        found = super().train(*args, **kwargs)
        if self.average is not None:
            self.average.apply()
        return found
