"""Training peft's own LoRA and DoRA: its layers, its start and its file, in Luthier's Trainer on Luthier's batches."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import transformers
from transformers import set_seed

from luthier import data
from luthier.comparing.fitted import Fitted, curves, tensors_on_disk
from luthier.comparing.methods import PEFT
from luthier.core.sites.select import select
from luthier.data.labels import labels_in_order
from luthier.measuring.allocation import allocate
from luthier.models import Loaded
from luthier.training import metrics
from luthier.training.arguments import arguments
from luthier.training.context import training_context
from luthier.training.folder import new_id
from luthier.training.pack import batches_of, computed
from luthier.training.prepare import Prepared, prepare
from luthier.training.processes import processes
from luthier.training.progress import quiet
from luthier.training.report import steps_of
from luthier.training.session import every, load
from luthier.training.spec import Run
from luthier.training.trainer import Trainer


def fit_peft(run: Run, start: Callable[[Any], None] | None = None) -> Fitted:
    """Fits peft's model as `luthier.train` fits Luthier's: same seed, sites, rank, scale, rows and order.

    A run that was killed starts over, for peft's tensors are not in Luthier's checkpoints. `start` may change the
    starting factors of the model that it is given.
    """
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True)
    with quiet():
        prepared = prepare(run)
        set_seed(run.training.seed)  # new heads, peft's own start
        loaded = load(run, prepared)
        total = sum(p.numel() for p in loaded.model.parameters())
        wrapped = adapted(run, loaded)
        if start is not None:
            start(wrapped)
        log = metrics.Metrics(run.folder, new_id())
        _train(run, prepared, loaded, log)
        adapter = run.folder / "adapter"
        wrapped.save_pretrained(str(adapter), save_embedding_layers=False)
    losses, evals = curves(run.folder)
    lines = metrics.read(run.folder)
    return Fitted(
        model=loaded.model,
        processor=loaded.processor,
        frozen=wrapped.disable_adapter,
        trainable=sum(p.numel() for p in wrapped.parameters() if p.requires_grad),
        total=total,
        bytes=tensors_on_disk(adapter),
        losses=losses,
        eval_losses=evals,
        seconds=metrics.seconds(lines),
        command="",
    )


def adapted(run: Run, loaded: Loaded) -> Any:
    """Builds peft's model around the loaded one, which is changed in place; new heads are trained with it."""
    import peft

    form: Any = allocate(loaded.model, run.form, run.where, ranks=run.ranks, budget=run.budget).form
    settings = form.to_dict()
    config = peft.LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings.get("dropout", 0.0),
        use_rslora=settings["scaling"] == "rslora",
        use_dora=PEFT[form.name()],
        target_modules=[site.path for site in select(loaded.model, run.where or form.where)],
        modules_to_save=loaded.new_modules or None,
    )
    return peft.get_peft_model(loaded.model, config)


def _train(run: Run, prepared: Prepared, loaded: Loaded, log: metrics.Metrics) -> None:
    model = loaded.model
    train, held = (
        labels_in_order(part, prepared.examples.labels, model.config) for part in (prepared.train, prepared.evaluation)
    )
    collator = data.collator_for(prepared.task, loaded.processor)
    steps, _ = steps_of(run, len(train), processes())
    args = arguments(run, steps, every(run, steps), bool(held))
    args.save_strategy = "no"  # pyright: ignore[reportAttributeAccessIssue]
    batches = batches_of(run, model, train, None, prepared.task)  # as Luthier's own runs are
    with training_context(run, model), computed(batches, model):
        trainer = Trainer(run, model, args, (train, held), collator, prepared.task == "causal-lm", [log])
        log.trainer = trainer
        transformers.Trainer.create_optimizer(trainer)  # Luthier's own drives updates of Luthier's adapters
        trainer.train()
