"""The families of two surveys: of what is trained, and of whose knowledge rows hold."""

from __future__ import annotations

FAMILIES = {
    "selective": "trains a part of the model's own parameters",
    "additive": "adds modules or vectors that change activations",
    "prompt": "adds trained tokens, or keys and values, before the input",
    "reparameterisation": "writes the change of a weight in fewer parameters",
    "hybrid": "combines several of these, or goes with each of them",
}
"""Parameter-efficient fine-tuning (Prottasha et al. 2025, PEFT A2Z, arXiv 2504.14117): every form, initialisation,
rank rule and update is of exactly one family. Training the whole model is selective, with all selected."""

DATA_FAMILIES = {
    "expert": "rows that people wrote, chose or labelled",
    "distilled": "answers of a stronger model",
    "self-improved": "answers of the model itself, checked or rewritten",
}
"""Instruction data (Zhang et al. 2023, arXiv 2308.10792): every rewrite, and every command that makes or chooses
training rows, is of exactly one; `luthier rewrite` of that of its default."""

CHECKLIST = {
    "baseline": "beside the model before fine-tuning",
    "intervals": "with the uncertainty of so few rows",
    "seeds": "over several seeds of training",
    "closed": "tasks with one right answer",
    "open": "open answers, judged or compared in pairs",
    "other tasks": "what it could do outside of the training data",
    "context": "questions with another context or in another form",
    "calibration": "whether it is as sure as it is right",
    "safety": "what it has to decline",
    "cost": "time, memory and size",
}
"""What an evaluation of an instruction-tuned model should cover (after the same survey; the wording is ours)."""


def ticked(done: set[str]) -> dict[str, bool]:
    """Returns the whole checklist, with what was done."""
    return {item: item in done for item in CHECKLIST}


def told(checklist: dict[str, bool]) -> str:
    """Returns the checklist in one sentence: what was done and what was not."""
    done, lacking = ([item for item, has in checklist.items() if has is wanted] for wanted in (True, False))
    return f"Evaluated: {', '.join(done) or 'nothing'}; not evaluated: {', '.join(lacking) or 'nothing is left'}."
