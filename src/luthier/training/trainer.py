"""transformers' Trainer, with the loss of an objective, exact means, and whole checkpoints."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.trainer_callback import PrinterCallback

from luthier.core.control import tensors
from luthier.core.errors import LuthierError
from luthier.data import Collator
from luthier.training.checkpoint import WRITING, clean, commit
from luthier.training.spec import Run

ADAPTER = "adapter.safetensors"
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def arguments(run: Run, steps: int, every: tuple[int, int], evaluates: bool) -> transformers.TrainingArguments:
    """What transformers calls the settings of `run`; `every` is (steps between evaluations, between checkpoints)."""
    settings = run.training
    made = transformers.TrainingArguments(
        output_dir=str(run.folder),
        max_steps=steps,
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=settings.batch,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=run.lr,
        lr_scheduler_type=SCHEDULES[settings.schedule],
        warmup_steps=math.ceil(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        seed=settings.seed,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=every[0],
        save_strategy="steps",
        save_steps=every[1],
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=settings.report_to.split(","),
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        log_level="error",
        use_cpu=not torch.accelerator.is_available(),
    )
    made._setup_devices  # noqa: B018  counts the GPUs; one process uses one, torchrun starts more
    made._n_gpu = min(made._n_gpu, 1)
    return made


class Trainer(transformers.Trainer):
    """Trains `model`'s adapter `run.name` on features; what is not told here is transformers' own.

    The objective's mean loss of each batch is weighted by its share of the labels in the step, over accumulated
    batches and processes, so a step's loss and gradient are those of the step's rows in a single batch.
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
    ) -> None:
        """`features` are (training, evaluation) rows; with `shifted` labels, a row's first one has no prediction."""
        self.run, self.shifted = run, shifted
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
        self.tokens = 0
        """Tokens seen by this process."""
        self.rows: list[int] = []
        """Rows of the step under way."""
        self.norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.model_accepts_loss_kwargs = True  # so it counts the labels and divides nothing itself
        self.loss_is_scaled_for_ga = True

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not self.run.training.shard:  # a sharded base is where it is to be
            super()._move_model_to_device(model, device)

    def items(self, batch: dict[str, Any]) -> int:
        """How many labels the mean loss of a batch is over."""
        labels = batch["labels"]
        if labels.dim() == 1:
            return len(labels)
        return int((labels[:, 1:] if self.shifted else labels).ne(-100).sum())

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:  # pyright: ignore
        self.rows = []
        self.tokens += sum(int(batch["attention_mask"].sum()) for batch in batch_samples if "attention_mask" in batch)
        count = torch.tensor(sum(map(self.items, batch_samples)), device=device)
        return self.accelerator.reduce(count, "sum")  # pyright: ignore[reportReturnType]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # pyright: ignore
        """The objective's loss, weighted; NaN and infinity stop the run before anything is saved."""
        rows: Any = inputs.pop("rows")
        self.rows += rows
        for norm in self.norms:
            norm.eval()  # the running statistics belong to the frozen base
        loss = self.run.objective.loss(model, inputs)
        if not math.isfinite(loss.item()):
            self._stop("loss", loss.item(), rows)
        assert num_items_in_batch is not None  # counted above for every step
        return loss * (self.items(inputs) / num_items_in_batch) * self.accelerator.num_processes

    def _stop(self, what: str, value: float, rows: list[int]) -> None:
        step = self.state.global_step + (what == "loss")
        raise LuthierError(
            f"the {what} became {value} at step {step}, on the rows {', '.join(map(str, rows))} of {self.run.data}. "
            f"Nothing was saved after the last checkpoint. Look at these rows (luthier show), or lower lr "
            f"({self.run.lr:g}), or clip gradients ({self.run.training.clip:g})."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hands `logs` to the callbacks; Trainer's own history, which would grow in every checkpoint, is not kept."""
        if not math.isfinite(logs.get("grad_norm", 0.0)):
            self._stop("gradient's norm", logs["grad_norm"], self.rows)
        super().log(logs, start_time)
        self.state.log_history.clear()

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):  # pyright: ignore
        """`{"eval_loss": …}`, the mean over all labels of the evaluation rows."""
        model: Any = self.model
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for batch in self.get_eval_dataloader():
            inputs = self._prepare_inputs(batch)
            inputs.pop("rows")
            count = self.items(inputs)
            with torch.no_grad():
                loss = self.run.objective.loss(model, inputs).item()
            sums += torch.tensor([loss * count, count], dtype=torch.float64)
        model.train()
        total, count = self.accelerator.reduce(sums.to(self.args.device), "sum").tolist()  # pyright: ignore
        metrics = {f"{metric_key_prefix}_loss": total / count}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _get_output_dir(self, trial) -> str:
        return str(self.root / WRITING)

    def _save_checkpoint(self, model, trial) -> None:
        """Trainer's checkpoint, written aside and committed whole."""
        if self.args.should_save:
            shutil.rmtree(self.root / WRITING, ignore_errors=True)
            os.makedirs(self.root / WRITING)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            step = self.state.global_step
            commit(self.root / WRITING / f"checkpoint-{step}", self.root / f"step-{step}")
            clean(self.root, self.run.training.keep)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The adapter's tensors alone; the base is where it was."""
        assert output_dir is not None and self.model is not None
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        held = {key: t.detach().cpu().contiguous() for key, t in tensors(self.model, self.run.name).items()}
        save_file(held, folder / ADAPTER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        stored = load_file(Path(resume_from_checkpoint) / ADAPTER)
        assert self.model is not None
        own = tensors(self.model, self.run.name)
        if set(stored) != set(own):
            raise LuthierError(
                f"{resume_from_checkpoint} belongs to another adapter: its tensors are not those of this run."
            )
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(stored[key])

    def restore(self, checkpoint: Path) -> None:
        """The adapter as `checkpoint` holds it."""
        self._load_from_checkpoint(str(checkpoint))
