"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from collections.abc import Mapping
from collections.abc import Sequence
from datasets import Dataset
from luthier.core.contracts.calibration import Calibration
from luthier.core.contracts.form import Form
from luthier.core.contracts.init import Init
from luthier.core.contracts.objective import Objective
from luthier.core.contracts.penalty import Penalty
from luthier.core.contracts.ranks import Ranks
from luthier.core.contracts.selection import Selection
from luthier.core.contracts.update import Update
from luthier.methods.targeted_form import TargetedForm
from luthier.models import Loaded
from luthier.training.result import Result
from luthier.training.spec import Run
from luthier.training.spec import Training
from pandas import DataFrame
from pathlib import Path
from transformers import PreTrainedModel
from transformers import TrainerCallback
from typing import Any
from typing import Literal

def train(
    run: Run | str | Path | Loaded | PreTrainedModel | None = None,
    data: str | Path | Sequence[Mapping[str, Any]] | DataFrame | Dataset | None = None,
    *,
    model: str | Path | Loaded | PreTrainedModel | None = None,
    form: Form | str | None = None,
    method: Form | str | None = None,
    recipe: str | None = None,
    eval_data: str | Path | Sequence[Mapping[str, Any]] | DataFrame | Dataset | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    where: str | None = None,
    ranks: Ranks | None | str = None,
    init: Init | None | str = None,
    budget: str | None = None,
    update: Update | str | None = None,
    objective: Objective | str | None = None,
    penalty: Penalty | None | str = None,
    also: tuple[TargetedForm, ...] = (),
    select: Selection | None | str = None,
    select_rows: int | None = None,
    target: str | None = None,
    calibration: Calibration | None = None,
    out: str = "run",
    task: str | None = None,
    training: Training | None = None,
    skip_bad_rows: bool = False,
    limit: int | None = None,
    name: str = "default",
    license: str | None = None,
    from_adapter: str | None = None,
    columns: str | None = None,
    strict: bool = False,
    trust_remote_code: bool = False,
    epochs: float = 3.0,
    steps: int | None = None,
    batch: int = 8,
    accumulate: int = 1,
    order: Literal['random', 'length'] = "random",
    pack: bool | None = None,
    cache_frozen: Literal['auto', 'off', 'on', 'bfloat16'] = "off",
    lr: float | None = None,
    schedule: Literal['linear', 'cosine', 'constant', 'cosine_restarts', 'polynomial', 'wsd', 'inverse_sqrt'] = "linear",
    min_lr: float = 0.0,
    decay: float = 0.2,
    cycles: int = 2,
    power: float = 2.0,
    warmup: float = 0.06,
    optimizer: Literal['adamw', 'adafactor', 'muon', 'schedule_free', 'lion', 'adamw_8bit', 'paged_adamw_8bit', 'adamw_torch_8bit', 'adamw_torch_4bit', 'sgd'] = "adamw",
    weight_decay: float = 0.0,
    clip: float = 1.0,
    neftune: float = 0.0,
    ema: float = 0.0,
    attn: Literal['eager', 'sdpa', 'flash_attention_2', 'flex_attention'] | None = None,
    compile: bool = False,
    workers: int = 0,
    noise_scale: bool = False,
    max_length: int = 1024,
    truncate: bool = False,
    eval_fraction: float = 0.05,
    eval_every: int | None = None,
    best: str | None = None,
    patience: int | None = None,
    save_every: int | None = None,
    keep: int = 2,
    seed: int = 0,
    precision: Literal['auto', 'float32', 'bfloat16', 'float16'] = "float32",
    quantize: str | None = None,
    gradient_checkpointing: bool = False,
    cpu_backend: Literal['auto', 'mkl', 'onednn', 'onednn-convolution'] = "auto",
    device: str = "auto",
    shard: bool = False,
    report_to: str = "none",
) -> Result:
    """Trains a run and fills its folder: a `Run`, a run file, or a model, data and a method with further fields.

        lt.train("smollm2-135m", "train.jsonl", method="lora", lr=1e-3, out="run")
        lt.train(lt.model("smollm2-135m"), rows, form=lt.LoRA(rank=16), update="lora_plus", epochs=2)
        lt.train("run.toml", out="second")

    A model is named, or held in memory (what `lt.model` gives, a model of transformers): that one is adapted where it
    lies. Data are a source, dictionaries in a list, a DataFrame or a Dataset; rows from memory are kept in
    `$LUTHIER_CACHE/rows`, so that the run can be resumed. `method` is another word for `form`; a name, here and of
    other choices, stands for the component with its own settings. `recipe` stands under what is said here. The other
    fields are those of `Run` and of `Training`; the latter go before those of `training`. `callbacks` are told of
    every step as by transformers' Trainer. `from_adapter` is a finished adapter to go on from, ours or another
    library's, which brings its form; of a run it brings model, data and settings too: `lt.train(from_adapter="run",
    steps=500, out="longer")`.

    The folder gets `run.json`, `adapter/`, `metrics.jsonl`, `loss.png`, `README.md` and `checkpoints/`. With
    `resume`, an interrupted run resumes from its newest complete checkpoint with the very losses that it would have
    had; a folder without a run starts one. `overwrite` replaces a run. Without `progress` nothing is printed. Without
    an objective, the rows choose it: pairs of a chosen and a rejected answer are fitted by `dpo`, all others by
    `sft`, which refuses answers that a label calls bad.

    Raises `LuthierError` for bad rows, a selector that matches nothing, a folder in use and the like before the
    weights are loaded, and for a loss that is not finite, naming the step and the rows.
    """
