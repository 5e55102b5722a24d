"""The base of a run: loaded as the run says, or held in memory, where it is adapted where it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier import models
from luthier.core.device import AUTO
from luthier.core.errors import LuthierError
from luthier.models import Loaded

if TYPE_CHECKING:
    from luthier.training.prepare import Prepared
    from luthier.training.spec import Run, Training

PRECISIONS = ("float32", "bfloat16", "float16")


def load_base(run: Run, task: str, labels: list[str] | None, device: str | None = None) -> Loaded:
    """Loads the base of a run for a task, with these classes: its dtype, its quantisation and its attention are those
    that the run trains with, for whoever compares it with what was trained."""
    settings = run.training
    return models.load(
        run.model,
        task=task,
        labels=labels,
        dtype=settings.precision,
        quantize=settings.quantize,
        attn=settings.attn,
        device=device,
        trust_remote_code=run.trust_remote_code,
    )


def loaded_of(model: Any) -> Loaded:
    """Returns the model as `luthier.model` would have loaded it; what is a `Loaded` already is left as it is.

    A run keeps the name of its base, so a model must tell where it came from (`model.name_or_path`). Raises
    `LuthierError` for one that does not, for other objects, and for classifiers that do not say which modules are new.
    """
    from transformers import PreTrainedModel

    if isinstance(model, Loaded):
        return model
    if not isinstance(model, PreTrainedModel):
        raise LuthierError(
            f"model is {type(model).__name__}; expected a name, what luthier.model gives, or a model of transformers."
        )
    name, task = str(model.name_or_path), models.task_of_class(type(model).__name__)
    if not name:
        raise LuthierError(
            f"this {type(model).__name__} does not say where it came from (name_or_path is empty), so nobody could use "
            "the adapter; save it to a folder (save_pretrained), and give that, or a model that was loaded from it."
        )
    if task not in (*models.WRITTEN, models.SPEECH):
        raise LuthierError(
            f"this {type(model).__name__} does not say which of its modules are new and to be trained; load it with "
            "luthier.model(name, task=…, labels=…)."
        )
    return Loaded(model, models.processor_of(name, task), name, models.resolve(name), task, [])


def precision_of(base: Loaded, wanted: str | None = None) -> str:
    """Returns the dtype of the base's weights, as `Training.precision` calls it; raises if it is not the one wanted."""
    found = str(base.model.dtype).removeprefix("torch.")
    if found not in PRECISIONS or wanted not in (None, AUTO, found):
        expected = " or ".join(PRECISIONS) if wanted in (None, AUTO) else wanted
        raise LuthierError(
            f"the model is {found}; expected {expected} (model.to(torch.bfloat16), or another precision)."
        )
    return found


def check_fits(base: Loaded, prepared: Prepared, settings: Training) -> None:
    """Raises unless the base serves the task of the rows and knows their classes, and is not to be quantised now."""
    if settings.quantize is not None:
        raise LuthierError(
            f"quantize={settings.quantize} is for models that are loaded here, and this one is in memory; load it with "
            f"luthier.model(…, quantize={settings.quantize!r})."
        )
    if settings.attn not in (None, base.model.config._attn_implementation):
        raise LuthierError(
            f"attn is {settings.attn}, and the model in memory was loaded with "
            f"{base.model.config._attn_implementation}; load it with luthier.model(…, attn={settings.attn!r})."
        )
    if base.task != prepared.task:
        raise LuthierError(
            f"the rows are for {prepared.task}, and the model was loaded for {base.task}: luthier.model(…, "
            f"task={prepared.task!r})."
        )
    labels = prepared.examples.labels
    if labels is not None and set(labels) - set(base.model.config.label2id):
        own = ", ".join(base.model.config.label2id)
        raise LuthierError(
            f"the rows have the classes {', '.join(labels)}, and the model's are {own}; load it with luthier.model(…, "
            "labels=[…])."
        )
