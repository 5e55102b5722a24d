"""What is said of an interrupted command: how to continue, where there is something to continue from."""

from __future__ import annotations

from luthier.core.paths import path_of

NOTHING = "nothing was written"


def run_stopped(out: str) -> str:
    """Of a run of training in this folder."""
    from luthier.training.checkpoint import any_there
    from luthier.training.folder import holds_run

    folder = path_of(out)
    if any_there(folder / "checkpoints"):
        return "continue with --resume"
    return "before the first checkpoint; start anew with --overwrite" if holds_run(folder) else NOTHING


def federation_stopped(out: str) -> str:
    """Of a federated run in this folder."""
    from luthier.federating.folder import ROUND, SPEC, STATE

    folder = path_of(out)
    if (folder / STATE).is_dir() or any((folder / ROUND).glob("*.safetensors")):
        return "continue with --resume"
    return "before the first client had finished; start anew with --overwrite" if (folder / SPEC).is_file() else NOTHING


def sequence_stopped(out: str) -> str:
    """Of a sequence of tasks in this folder."""
    from luthier.training.sequences.run import SPEC

    return _by_file(out, SPEC)


def edit_stopped(out: str) -> str:
    """Of an edit in this folder."""
    from luthier.training.editing.run import SPEC

    return _by_file(out, SPEC)


def unlearning_stopped(out: str) -> str:
    """Of an unlearning in this folder."""
    from luthier.training.unlearning.run import SPEC

    return _by_file(out, SPEC)


def meta_stopped(out: str) -> str:
    """Of a meta-training in this folder."""
    from luthier.training.meta.learned import SPEC

    return _by_file(out, SPEC)


def metatune_stopped(out: str) -> str:
    """Of a meta-tuning in this folder."""
    from luthier.comparing.left_out.run import SPEC

    return _by_file(out, SPEC)


def self_training_stopped(out: str) -> str:
    """Of a self-training in this folder."""
    from luthier.training.self_training.run import SPEC

    return _by_file(out, SPEC)


def sweep_stopped(out: str) -> str:
    """Of a sweep of models that learn in context in this folder."""
    from luthier.training.in_context.run import SPEC

    return _by_file(out, SPEC)


def _by_file(out: str, name: str) -> str:
    """Of work in a folder that has this file from its beginning on."""
    return "continue with --resume" if (path_of(out) / name).is_file() else NOTHING
