"""The specification of a self-training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from luthier.core.contracts.component import check_fields
from luthier.core.contracts.form import Form
from luthier.core.errors import LuthierError

TEXT = "{text}"


@dataclass(frozen=True)
class SelfTraining:
    """A causal language model, few rows with a class, many without, and how the former teach the latter."""

    model: str
    """A folder, a hub id, a .gguf file or a name of the catalogue."""
    labelled: str
    """The rows with a class (text, label)."""
    unlabelled: str
    """The rows without (text)."""
    form: Form
    test: str | None = None
    """Rows with a class to test on."""
    out: str = "selftrain"
    """The folder to write."""
    where: str | None = None
    """Sites that the form is attached to. Default: the form's own."""
    template: str = "{text}\nIt was"
    """The prompt; the model says the class with its next token."""
    words: tuple[str, ...] = ()
    """What the model says for each class, such as 'positive= great', the space included. Default: a space and the
    class."""
    rounds: int = 2
    """Rounds: the student of one is the teacher of the next."""
    teacher_steps: int = 100
    """Steps of the first teacher, on the labelled rows."""
    steps: int = 200
    """Steps of a student, on the unlabelled rows."""
    finetune: int = 50
    """Steps of a student on the labelled rows afterwards."""
    batch: int = 16
    """Unlabelled rows of a step."""
    shown: int = 4
    """Labelled rows of a step: those that the weights are measured by, and those that the teacher learns."""
    reweigh: bool = True
    """Weigh the rows of each batch by what they do for labelled ones; otherwise all alike."""
    warmup: float = 0.0
    """Share of a student's steps, the first, in which all rows weigh alike."""
    lr: float = 1e-3
    """Learning rate, by Adam."""
    max_length: int = 128
    """The most tokens of a prompt."""
    save_every: int = 50
    """Steps between checkpoints."""
    seed: int = 0
    """The seed of new tensors, and of the batches."""
    dtype: str = "float32"
    """Dtype of the base."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("rounds", "teacher_steps", "steps", "batch", "shown", "max_length", "save_every"):
            if getattr(self, name) < 1:
                raise LuthierError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.finetune < 0:
            raise LuthierError(f"finetune is {self.finetune}; expected 0 or more steps.")
        if not 0 <= self.warmup <= 1:
            raise LuthierError(f"warmup is {self.warmup}; expected a share of the steps, from 0 to 1.")
        if self.warmup and not self.reweigh:
            raise LuthierError("without reweigh all rows weigh alike, and warmup would be ignored; leave one out.")
        if not self.lr > 0:
            raise LuthierError(f"lr is {self.lr}; expected a number above 0.")
        if self.template.count(TEXT) != 1:
            raise LuthierError(f"template is {self.template!r}; expected a prompt that holds {TEXT} once.")
        self.named()

    def named(self) -> dict[str, str]:
        """Returns {class: what the model says for it} as `words` tells them."""
        found: dict[str, str] = {}
        for each in self.words:
            name, told, word = each.partition("=")
            if not (name.strip() and told and word) or name.strip() in found:
                raise LuthierError(f"words holds {each!r}; expected CLASS=WORD once for each class.")
            found[name.strip()] = word
        return found

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as JSON holds them."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**plain, "form": {"name": self.form.name(), "settings": self.form.to_dict()}, "words": list(self.words)}
