"""What transformers' Trainer is told of a run."""

from __future__ import annotations

import math
import multiprocessing
from typing import Any

import torch
import transformers

from luthier.core.device import device_of
from luthier.core.errors import LuthierError
from luthier.training.optimisers import OWN
from luthier.training.processes import processes
from luthier.training.schedule import PLAIN
from luthier.training.spec import Run, Training


def arguments(run: Run, steps: int, every: tuple[int, int], evaluates: bool) -> transformers.TrainingArguments:
    """Returns the TrainingArguments of `run`; `every` is (steps between evaluations, between checkpoints)."""
    settings, place = run.training, device_of()
    made = transformers.TrainingArguments(
        output_dir=str(run.folder),
        max_steps=steps,
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=settings.batch,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=run.lr,
        lr_scheduler_type=PLAIN.get(settings.schedule, "constant"),
        warmup_steps=math.ceil(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        **optim_of(settings),
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
        dataloader_pin_memory=place.type == "cuda",
        **loading(settings.workers),
        disable_tqdm=True,
        log_level="error",
        use_cpu=place.type == "cpu",
    )
    made._setup_devices  # noqa: B018  counts the GPUs; one process uses one, torchrun starts more
    made._n_gpu = min(made._n_gpu, 1)
    if processes() == 1 and place.type != "cpu":  # transformers takes the first of them
        vars(made)["_setup_devices"] = place
        torch.accelerator.set_device_index(place)
    return made


def loading(workers: int) -> dict[str, Any]:
    """Returns the arguments of processes that make batches: forked, as rows are in memory or read on demand."""
    if not workers:
        return {}
    known = transformers.TrainingArguments.__dataclass_fields__  # the oldest versions have only Python's default
    name = "dataloader_multiprocessing_context"
    if name not in known and (method := multiprocessing.get_start_method()) != "fork":
        raise LuthierError(
            f"workers is {workers}: they are forked, and this version of transformers takes Python's default "
            f"({method}); leave it out, or install a newer transformers."
        )
    return {"dataloader_num_workers": workers, **({name: "fork"} if name in known else {})}


OPTIMISERS = {"lion": "lion_32bit", "adamw_8bit": "adamw_bnb_8bit"}
"""The names of optimisers in transformers, where they are others than here."""


def optim_of(settings: Training) -> dict[str, Any]:
    """Returns the arguments that choose the optimiser; AdamW is what transformers takes by itself, fused where it can
    be, and those of `luthier.training.optimisers` are no concern of its."""
    name = settings.optimizer
    return {} if name == "adamw" or name in OWN else {"optim": OPTIMISERS.get(name, name)}
