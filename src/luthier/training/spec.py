"""The specification of a training run: model, data, form and hyper-parameters, as frozen values stored as JSON."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from luthier.core.contracts.component import check_fields, known_fields
from luthier.core.contracts.ranks import parameters_of
from luthier.core.contracts.update import Update
from luthier.core.device import AUTO, device_of, usual_precision
from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.core.paths import path_of
from luthier.data.columns import mapping
from luthier.methods.choices import Choices
from luthier.training.schedule import check_schedule


@dataclass(frozen=True)
class Training:
    """The hyper-parameters of training that every method shares."""

    epochs: float = 3.0
    """The number of passes over the training rows; a fraction is allowed."""
    steps: int | None = None
    """The number of optimiser steps; overrides epochs."""
    batch: int = 8
    """Rows per batch and process."""
    accumulate: int = 1
    """Batches accumulated per optimiser step; the loss is the mean over all their tokens."""
    order: Literal["random", "length"] = "random"
    """The order of rows: random, or with rows of similar length in a batch, which saves padding where batches are not
    packed."""
    pack: bool | None = None
    """Pack the rows of a batch into one stream, so that no padding is computed: the same losses and gradients, sooner.
    Default: where the model allows it."""
    cache_frozen: Literal["auto", "off", "on", "bfloat16"] = "off"
    """Keep what enters the first block with something to train in the run's folder, so that epochs after the first
    begin there: on, in the dtype of the base, or bfloat16, which rounds it in every epoch. auto is on where rows come
    again (more than one epoch), a quarter of the blocks are below all that is trained, and it takes no more than half
    of the free disk and 16 GiB; where it cannot be, auto says why and on is refused. It is removed at the end."""
    lr: float | None = None
    """The peak learning rate. Default: the form's own."""
    schedule: Literal["linear", "cosine", "constant", "cosine_restarts", "polynomial", "wsd", "inverse_sqrt"] = "linear"
    """The learning-rate schedule after the warm-up."""
    min_lr: float = 0.0
    """The lowest learning rate of the schedule, as a share of the peak."""
    decay: float = 0.2
    """Of wsd: the share of the steps, at the end, in which the learning rate falls."""
    cycles: int = 2
    """Of cosine_restarts: the number of cosines."""
    power: float = 2.0
    """Of polynomial: the exponent of (1 - t)."""
    warmup: float = 0.06
    """The share of the steps in which the learning rate warms up from zero."""
    optimizer: Literal[
        "adamw", "adafactor", "muon", "schedule_free", "lion", "adamw_8bit", "paged_adamw_8bit", "adamw_torch_8bit",
        "adamw_torch_4bit", "sgd",
    ] = "adamw"  # fmt: skip
    """The optimiser: torch's (fused) AdamW and SGD, transformers' Adafactor, Muon for matrices with AdamW for all else,
    AdamW without a schedule (schedule_free: the weighted mean is evaluated and saved), bitsandbytes' Lion and AdamW
    with 8-bit states (paged: on a GPU), torchao's AdamW with states of 8 or 4 bits (adamw_torch_8bit)."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    clip: float = 1.0
    """The gradient norm to clip to (0: no clipping)."""
    neftune: float = 0.0
    """NEFTune: the size of the uniform noise on token embeddings in training (the paper's are 5, 10 and 15)."""
    ema: float = 0.0
    """The decay d of a moving average of what is trained, θ̄ ← d θ̄ + (1 - d) θ after each step, which is evaluated and
    saved in its stead (0: none; usual are 0.99 to 0.999)."""
    attn: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"] | None = None
    """How attention is computed: eager, sdpa, flash_attention_2 or flex_attention. Default: transformers' choice."""
    compile: bool = False
    """Compile the blocks of the model (torch.compile), which takes its time in the first steps; batches are padded."""
    workers: int = 0
    """Processes that make batches beside the one that trains, which pays for rows with pictures (0: none)."""
    noise_scale: bool = False
    """Tell the parts of the gradient noise scale at each step, which compares its batches: accumulate has to be 2 or
    more. The scale is about the number of rows in a step from which on more of them add little."""
    max_length: int = 1024
    """The most tokens of a row; a longer text is cut into several rows, any other longer row is refused."""
    truncate: bool = False
    """Truncate the prompts of rows that are too long, instead of refusing the rows."""
    eval_fraction: float = 0.05
    """The share of the rows held out for the evaluation loss (0: none), unless evaluation data are given."""
    eval_every: int | None = None
    """Steps between evaluations. Default: a tenth of the run."""
    best: str | None = None
    """Save the adapter of the best evaluation instead of the last: by loss, by a figure of the task (accuracy, mcc and
    macro_f1 of classes, f1 of tags and of answers in a text, pearson and mse of numbers, micro_f1 of several classes,
    mrr@10 of texts near each other) or of the objective (accuracy of dpo), or by what is written of the rows held out
    (any scorer or metric of `luthier evaluate`; wer and cer of sounds). Of loss, mse and errors less is better, of all
    others more."""
    patience: int | None = None
    """Stop after this many evaluations that were not better; goes with best."""
    save_every: int | None = None
    """Steps between checkpoints. Default: a tenth of the run; the first comes after a minute at the latest, and
    later ones every 15 minutes."""
    keep: int = 2
    """The number of checkpoints to keep."""
    seed: int = 0
    """The seed of the split, the order of the rows, the initialisation and dropout."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Dtype of the base; adapters stay float32. float16 scales the loss, and is for GPUs without bfloat16. auto is
    bfloat16 on an accelerator that computes it fast, float16 on a CUDA device that does not, else float32, decided when
    a run is begun."""
    quantize: str | None = None
    """Quantise the base's weights: nf4 or int8."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    cpu_backend: Literal["auto", "mkl", "onednn", "onednn-convolution"] = "auto"
    """The library for float32 matrix products on a CPU: auto is the fastest on this machine, measured once."""
    device: str = "auto"
    """Where it is computed: auto (an accelerator if there is one), cpu, cuda, cuda:1, mps."""
    shard: bool = False
    """Shard the base across the processes of torchrun (FSDP2); adapters stay whole on each."""
    report_to: str = "none"
    """Services of transformers' Trainer to log to, joined by commas: tensorboard, wandb, mlflow and others."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.precision == AUTO:  # a run that is gone on with elsewhere keeps it
            object.__setattr__(self, "precision", usual_precision(device_of(self.device)))
        for name, low, high in BOUNDS:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                wanted = f"between {low} and {high}" if high < math.inf else f"at least {low}"
                raise LuthierError(f"{name} is {value}; expected {wanted}.")
        for name in ("epochs", "lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise LuthierError(f"{name} is {value}; expected a number above 0.")
        if self.eval_fraction >= 1:
            raise LuthierError("eval_fraction is 1, which leaves no row to train on.")
        check_schedule(self)
        library = LIBRARIES.get(self.optimizer)
        if library is not None and find_spec(library) is None:
            raise LuthierError(f"optimizer={self.optimizer} needs {library}: pip install 'luthier[quant]'")
        if self.optimizer == "schedule_free":
            self._check_schedule_free()
        if self.patience is not None and self.best is None:
            raise LuthierError("patience counts evaluations that are not better; say by which figure (best, as loss).")
        if self.best is not None and self.shard:
            raise LuthierError(
                "best keeps the adapter of an evaluation, which a sharded run does not yet; leave it out."
            )
        if self.ema == 1:
            raise LuthierError("ema is 1, with which the average would stay where training starts; expected below 1.")
        if self.ema and self.shard:
            raise LuthierError("ema keeps an average of the adapter, which a sharded run does not yet; leave it out.")
        if self.attn == "flash_attention_2" and find_spec("flash_attn") is None:
            raise LuthierError(
                "attn=flash_attention_2 needs the package flash-attn (and a GPU): pip install flash-attn"
            )
        if self.workers and "fork" not in multiprocessing.get_all_start_methods():
            raise LuthierError(
                f"workers is {self.workers}: they are forked, which this system does not do; leave it out."
            )
        if self.noise_scale and self.accumulate < 2:
            raise LuthierError(
                "noise_scale compares the batches of a step, and here is one; set accumulate to 2 or more."
            )
        if self.shard and self.quantize is not None:
            raise LuthierError(f"quantize={self.quantize} quantises the base, and a quantised base cannot be sharded.")

    def _check_schedule_free(self) -> None:
        if self.schedule != "constant":
            raise LuthierError(
                f"schedule_free takes the place of a schedule, and schedule is {self.schedule}; add schedule=constant "
                "(its warm-up stays)."
            )
        if self.ema or self.shard:
            other = "ema" if self.ema else "shard"
            raise LuthierError(f"schedule_free keeps an average of its own, which does not go with {other}.")

    def refuse(self, unread: Sequence[str], why: str) -> None:
        """Raises for settings that are not as usual though nothing reads them; `why` is a clause that says so."""
        usual = Training()
        told = [f"{name} is {getattr(self, name)}" for name in unread if getattr(self, name) != getattr(usual, name)]
        if told:
            raise LuthierError(f"{', '.join(told)}, {why}; leave {'it' if len(told) == 1 else 'them'} out.")

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Training:
        """Creates the settings that `to_dict` wrote; unknown names raise `LuthierError`."""
        return cls(**known_fields(cls, values))


LIBRARIES = {
    **dict.fromkeys(("lion", "adamw_8bit", "paged_adamw_8bit"), "bitsandbytes"),
    **dict.fromkeys(("adamw_torch_8bit", "adamw_torch_4bit"), "torchao"),
}
"""What an optimiser needs beside torch and transformers."""
COMES = "the form, where it goes, its ranks and scales come with the adapter; leave them out"
BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("steps", 1, math.inf),
    ("batch", 1, math.inf),
    ("accumulate", 1, math.inf),
    ("warmup", 0, 1),
    ("weight_decay", 0, 1e6),
    ("clip", 0, 1e12),
    ("neftune", 0, 1e6),
    ("ema", 0, 1),
    ("min_lr", 0, 1),
    ("decay", 0, 1),
    ("cycles", 1, 10**6),
    ("power", 0, 100),
    ("patience", 1, math.inf),
    ("workers", 0, 256),
    ("max_length", 1, math.inf),
    ("eval_fraction", 0, 1),
    ("eval_every", 1, math.inf),
    ("save_every", 1, math.inf),
    ("keep", 1, math.inf),
    ("seed", 0, 2**32 - 1),
)
"""The lowest and the highest value of a setting."""


@dataclass(frozen=True)
class Basis:
    """A model and the data that it is fitted to: the first two arguments of a run."""

    model: str
    """A folder, a hub id, a .gguf file or a name of the catalogue."""
    data: str
    """A file, a folder, a hub id or gym:<task>."""


@dataclass(frozen=True, kw_only=True)
class Run(Choices, Basis):
    """A model, data, a form and how to train it: everything that `luthier train` needs, and what `run.json` keeps.

    The choices of the method are those of `luthier.methods.choices`.
    """

    out: str = field(default="run", kw_only=False)
    """The run folder."""
    task: str | None = None
    """The task of the model. Default: the task that the data's columns imply."""
    eval_data: str | None = None
    """Data for the evaluation loss. Default: a share of the training rows. The source `data` gives its test split."""
    training: Training = field(default_factory=Training)
    """The hyper-parameters of training."""
    skip_bad_rows: bool = False
    """Skip the rows that cannot be used, instead of refusing the data."""
    limit: int | None = None
    """Train on this many rows of the data, drawn by the seed."""
    name: str = "default"
    """The name of the adapter."""
    license: str | None = None
    """Licence of the adapter, for its card. Default: not stated; the base's licence is named."""
    from_adapter: str | None = field(default=None, metadata={"called": "--from"})
    """Go on from this adapter (a run, an adapter, or another library's folder): it starts as it is, with its form,
    ranks and scales. Optimiser and schedule begin anew."""
    columns: str | None = None
    """The names of columns in the data, by their meaning: text=body,label=category."""
    strict: bool = False
    """Refuse data with columns that are not used, instead of warning."""
    trust_remote_code: bool = False
    """Run Python code that lies in the model's folder or repository, where its architecture or tokenizer needs it."""

    def __post_init__(self) -> None:
        from luthier.core.adapters.attach import NAME  # brings transformers, which --help does without

        check_fields(self)
        if not self.out.strip():
            raise LuthierError("out is empty; name the run folder.")
        if not NAME.fullmatch(self.name):
            raise LuthierError(f"{self.name!r} cannot name an adapter; use letters, digits, '_' and '-' (at most 64).")
        if self.budget is not None:
            parameters_of(self.budget, 10**12)  # its words, before the model is known
            self.form.with_rank(1)
        self.update.check_decay(self.training.weight_decay)
        if self.training.optimizer != "adamw" and self.update.name() != "adamw":
            raise LuthierError(
                f"{self.update.name()} changes what AdamW does, and the optimiser is {self.training.optimizer}; leave "
                "one of the two out."
            )
        if self.training.ema and type(self.update).exchanges is not Update.exchanges:
            raise LuthierError(
                f"{self.update.name()} exchanges what is trained for other entries, of which no average (ema) can be "
                "taken; leave one of the two out."
            )
        mapping(self.columns)
        if self.from_adapter is not None:
            self._check_starts_once()
        if self.limit is not None and self.limit < 1:
            raise LuthierError(f"limit is {self.limit}; expected at least 1.")
        if (self.select is None) != (self.select_rows is None) or (self.select is None and self.target is not None):
            raise LuthierError("select, what chooses rows, and select_rows, how many, go together (target: what for).")
        if self.select is not None and self.select.targeted and self.target is None:
            raise LuthierError(f"{self.select.name()} takes rows that are near those of a task; name them (target).")

    def _check_starts_once(self) -> None:
        told = {"ranks": self.ranks, "init": self.init, "budget": self.budget, "also": self.also or None}
        if given := [name for name, value in told.items() if value is not None]:
            raise LuthierError(
                f"{', '.join(given)} would start an adapter, and this run goes on from {self.from_adapter} "
                f"(from_adapter, --from): {COMES}."
            )

    @property
    def folder(self) -> Path:
        """The run folder as a path."""
        return path_of(self.out)

    @property
    def lr(self) -> float:
        """The learning rate: the one given, or the form's own."""
        return self.training.lr if self.training.lr is not None else self.form.lr

    @classmethod
    @guarded("the record of a run is damaged, or was changed by hand")
    def from_dict(cls, values: dict[str, Any]) -> Run:
        """Creates the run that `to_dict` wrote; unknown names and ill-typed values raise `LuthierError`."""
        given = cls.read(values)
        if "training" in given:
            given["training"] = Training.from_dict(given["training"])
        missing = {"model", "data", "form"} - set(given)
        if missing:
            raise LuthierError(f"a run needs {', '.join(sorted(missing))}.")
        return cls(**given)
