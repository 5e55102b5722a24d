"""A Trainer whose checkpoints are whole or not there, and hold what the run trains instead of the model."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

from luthier.core.adapters.control import tensors
from luthier.core.contracts.objective import ObjectiveState
from luthier.core.errors import LuthierError
from luthier.core.guard import guarded, written
from luthier.core.records import recorded, write_json
from luthier.training.checkpoint import WRITING, clean, commit, go_on
from luthier.training.ema import Ema
from luthier.training.loss_scale import LossScale
from luthier.training.penalised import Penalised
from luthier.training.rollouts.online import Online
from luthier.training.spec import Run

ADAPTER = "adapter.safetensors"
REMEMBERED = "objective.json"


class Checkpointed(transformers.Trainer):
    """Writes checkpoints of an adapter and of what else its training goes on from, and reads them."""

    run: Run
    run_id: str
    """Checkpoints bear it."""
    root: Path
    """The folder of the checkpoints."""
    online: Online | None
    """What samples the answers of each step, where the objective learns from such."""
    penalised: Penalised | None
    average: Ema | None
    """What is evaluated and saved in the place of what is trained."""
    loss_scale: LossScale | None
    """Of a float16 base."""
    objective_state: ObjectiveState
    """The state that the objective keeps of its evaluations; `looks` counts them."""
    looks: int
    resumes: bool
    """Whether a checkpoint was loaded, whose optimiser state follows."""

    def _get_output_dir(self, trial) -> str:
        return str(self.root / WRITING)

    def _save_checkpoint(self, model, trial) -> None:
        """Trainer's checkpoint, written aside and committed whole."""
        with written(f"{self.root}, the checkpoint of step {self.state.global_step},", partial(go_on, self.run.folder)):
            self._commit(model, trial)

    def _commit(self, model, trial) -> None:
        if self.args.should_save:
            shutil.rmtree(self.root / WRITING, ignore_errors=True)
            os.makedirs(self.root / WRITING)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            step = self.state.global_step
            commit(self.root / WRITING / f"checkpoint-{step}", self.root / f"step-{step}", self.run_id, step)
            clean(self.root, self.run.training.keep)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The adapter's tensors alone; the base is where it was."""
        assert output_dir is not None and self.model is not None
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        held = {key: t.detach().cpu().contiguous() for key, t in tensors(self.model, self.run.name).items()}
        save_file(held, folder / ADAPTER)
        if self.online is not None:
            self.online.save(folder, self.state.global_step)
        if self.penalised is not None:
            self.penalised.save(folder)
        if self.average is not None:
            self.average.save(folder)
        if self.loss_scale is not None:
            self.loss_scale.save(folder)
        if self.looks or self.objective_state:
            write_json(folder / REMEMBERED, {"looks": self.looks, "memory": self.objective_state})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        self.resumes = True
        with guarded(f"{resume_from_checkpoint} cannot be read"):
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
        if self.online is not None:
            self.online.restore(Path(resume_from_checkpoint))
        if self.penalised is not None:
            self.penalised.load(Path(resume_from_checkpoint))
        if self.average is not None:
            self.average.load(Path(resume_from_checkpoint))
        if self.loss_scale is not None:
            self.loss_scale.load(Path(resume_from_checkpoint))
        if (Path(resume_from_checkpoint) / REMEMBERED).is_file():
            with recorded(Path(resume_from_checkpoint) / REMEMBERED) as known:
                self.looks, self.objective_state = known["looks"], known["memory"]

    def restore(self, checkpoint: Path) -> None:
        """Restores the adapter from `checkpoint`: the average, where there is one."""
        self._load_from_checkpoint(str(checkpoint))
        if self.average is not None:
            self.average.apply()
