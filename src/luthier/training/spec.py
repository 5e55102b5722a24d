"""What a run is: its hyper-parameters and what it fits, as frozen values that travel through JSON."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier.core.contracts.component import Component, check_type, find
from luthier.core.contracts.form import Form
from luthier.core.contracts.init import Init
from luthier.core.contracts.objective import Objective
from luthier.core.contracts.ranks import Ranks, parameters_of
from luthier.core.contracts.selection import Selection
from luthier.core.contracts.update import Update
from luthier.core.errors import LuthierError, near
from luthier.data.columns import mapping
from luthier.measuring.calibration import Calibration
from luthier.methods.objectives.sft import SFT
from luthier.methods.targeted_form import TargetedForm
from luthier.methods.updates.adamw import AdamW


@dataclass(frozen=True)
class Training:
    """How a form is trained, whatever the update."""

    epochs: float = 3.0
    """Passes over the training rows; a fraction is allowed."""
    steps: int | None = None
    """Optimiser steps; overrides epochs."""
    batch: int = 8
    """Rows a process takes at a time."""
    accumulate: int = 1
    """Batches whose gradients make one step; the loss is the mean over all their tokens."""
    order: Literal["random", "length"] = "random"
    """How rows meet in batches: at random, or with rows of like length, which saves padding."""
    lr: float | None = None
    """Highest learning rate. Default: the form's own."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """What the learning rate does after the warm-up."""
    warmup: float = 0.06
    """Share of the steps in which the learning rate rises from zero."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    clip: float = 1.0
    """Gradients of a larger norm are scaled to it (0: never)."""
    max_length: int = 1024
    """Longest row, in tokens; a longer text is cut into several rows, a longer row of any other kind is a bad one."""
    truncate: bool = False
    """Cut the prompts of rows that are too long, instead of refusing them."""
    eval_fraction: float = 0.05
    """Share of the rows held out for the evaluation loss (0: none), unless evaluation data are given."""
    eval_every: int | None = None
    """Steps between evaluations. Default: a tenth of the run."""
    save_every: int | None = None
    """Steps between checkpoints. Default: a tenth of the run."""
    keep: int = 2
    """Checkpoints kept."""
    seed: int = 0
    """Fixes the split, the order of the rows, the start of the form and all noise."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the base; adapters stay float32."""
    quantize: str | None = None
    """Quantise the base's weights: nf4 or int8."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    cpu_backend: Literal["auto", "mkl", "onednn", "onednn-convolution"] = "auto"
    """What multiplies float32 matrices on a CPU: auto is the fastest on this machine, measured once."""
    shard: bool = False
    """Shard the base across the processes of torchrun (FSDP2); adapters stay whole on each."""
    report_to: str = "none"
    """Also log to these services of transformers' Trainer, joined by commas: tensorboard, wandb, mlflow, …"""

    def __post_init__(self) -> None:
        for name, (hint, _) in _hints(type(self)).items():
            check_type(name, getattr(self, name), hint)
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
        if self.shard and self.quantize is not None:
            raise LuthierError(f"quantize={self.quantize} quantises the base, and a quantised base cannot be sharded.")

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON holds them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Training:
        """The inverse of `to_dict`; unknown names raise `LuthierError`."""
        return cls(**_known(cls, values))


BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("steps", 1, math.inf),
    ("batch", 1, math.inf),
    ("accumulate", 1, math.inf),
    ("warmup", 0, 1),
    ("weight_decay", 0, 1e6),
    ("clip", 0, 1e12),
    ("max_length", 1, math.inf),
    ("eval_fraction", 0, 1),
    ("eval_every", 1, math.inf),
    ("save_every", 1, math.inf),
    ("keep", 1, math.inf),
    ("seed", 0, 2**32 - 1),
)
"""Lowest and highest value of a setting."""


@dataclass(frozen=True)
class Run:
    """A model, data, a form and how to train it: everything that `luthier train` needs, and what `run.json` keeps."""

    model: str
    """A folder, a hub id, a .gguf file or a name of the catalogue."""
    data: str
    """A file, a folder, a hub id or gym:<task>."""
    form: Form
    """What is attached, with its hyper-parameters."""
    where: str | None = None
    """Sites that it is attached to. Default: the form's own."""
    out: str = "run"
    """The run folder."""
    task: str | None = None
    """What the model is fitted for. Default: what the data's columns tell."""
    eval_data: str | None = None
    """Data for the evaluation loss. Default: a share of the training rows. The source `data` gives its test split."""
    objective: Objective = field(default_factory=SFT)
    """What training lowers."""
    training: Training = field(default_factory=Training)
    """How it is trained."""
    skip_bad_rows: bool = False
    """Go on without the rows that cannot be used."""
    limit: int | None = None
    """Take that many rows of the data, drawn by the seed."""
    name: str = "default"
    """Name of the adapter."""
    ranks: Ranks | None = None
    """What chooses the rank of each site. Default: the form's own everywhere."""
    init: Init | None = None
    """Where the form starts. Default: its own start."""
    budget: str | None = None
    """What the ranks may cost: a share of the model (0.1%), trainable parameters (500k) or a size on disk (8MB)."""
    calibration: Calibration = field(default_factory=Calibration)
    """How the data are looked at before ranks and starting factors are chosen."""
    update: Update = field(default_factory=AdamW)
    """What becomes of the gradients, and what is trained at all."""
    also: tuple[TargetedForm, ...] = ()
    """Further forms of the same adapter, each with its place; ranks, init and budget are those of `form`."""
    select: Selection | None = None
    """What chooses the rows that are learned, of those not held out. Default: all are."""
    select_rows: int | None = None
    """How many rows it takes."""
    target: str | None = None
    """Data of the task that it chooses for, as `data`."""
    license: str | None = None
    """Licence of the adapter, for its card. Default: not stated; the base's is told."""
    columns: str | None = None
    """Columns that the data call otherwise than the layouts do, by what they are: text=body,label=category."""
    strict: bool = False
    """Refuse data with columns that nothing reads, instead of naming them."""

    def __post_init__(self) -> None:
        from luthier.core.adapters.attach import NAME  # brings transformers, which --help does without

        for key, (hint, _) in _hints(type(self)).items():
            check_type(key, getattr(self, key), hint)
        if not self.out.strip():
            raise LuthierError("out is empty; name the run folder.")
        if not NAME.fullmatch(self.name):
            raise LuthierError(f"{self.name!r} cannot name an adapter; use letters, digits, '_' and '-' (at most 64).")
        if self.budget is not None:
            parameters_of(self.budget, 10**12)  # its words, before the model is known
            self.form.with_rank(1)
        self.update.check_decay(self.training.weight_decay)
        mapping(self.columns)
        if self.limit is not None and self.limit < 1:
            raise LuthierError(f"limit is {self.limit}; expected at least 1.")
        if (self.select is None) != (self.select_rows is None) or (self.select is None and self.target is not None):
            raise LuthierError("select, what chooses rows, and select_rows, how many, go together (target: what for).")
        if self.select is not None and self.select.targeted and self.target is None:
            raise LuthierError(f"{self.select.name()} takes rows that are near those of a task; name them (target).")

    @property
    def folder(self) -> Path:
        """The run folder as a path."""
        return Path(self.out).expanduser()

    @property
    def lr(self) -> float:
        """The learning rate: the one given, or the form's own."""
        return self.training.lr if self.training.lr is not None else self.form.lr

    def to_dict(self) -> dict[str, Any]:
        """The whole run as JSON holds it; the inverse of `from_dict`."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return plain | {
            **{key: _component(getattr(self, key)) for key in COMPONENTS},
            "calibration": self.calibration.to_dict(),
            "training": self.training.to_dict(),
            "also": [each.to_dict() for each in self.also],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Run:
        """The run that `to_dict` wrote; unknown names and ill-typed values raise `LuthierError`."""
        given = _known(cls, values)
        for key, axis in COMPONENTS.items():
            if given.get(key) is not None:
                given[key] = find(axis, given[key]["name"]).from_dict(given[key]["settings"])
        if "calibration" in given:
            given["calibration"] = Calibration(**_known(Calibration, given["calibration"]))
        given["also"] = tuple(map(TargetedForm.from_dict, given.get("also", ())))
        if "training" in given:
            given["training"] = Training.from_dict(given["training"])
        missing = {"model", "data", "form"} - set(given)
        if missing:
            raise LuthierError(f"a run needs {', '.join(sorted(missing))}.")
        return cls(**given)


COMPONENTS = {
    "form": "forms",
    "ranks": "ranks",
    "init": "inits",
    "objective": "objectives",
    "update": "updates",
    "select": "selections",
}
"""Fields of a run that hold a component, with its axis."""


def _component(component: Component | None) -> dict[str, Any] | None:
    return component and {"name": component.name(), "settings": component.to_dict()}


def _hints(cls: type) -> dict[str, tuple[Any, dataclasses.Field]]:
    """`{name: (type, field)}`, as `Component.settings` gives."""
    hints = typing.get_type_hints(cls)
    return {f.name: (hints[f.name], f) for f in dataclasses.fields(cls)}


def _known(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            raise LuthierError(f"no setting {key!r}{near(key, names)} There are: {', '.join(names)}.")
    return dict(values)
