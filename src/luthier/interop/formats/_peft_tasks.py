"""What peft calls the tasks of models (`task_type`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import nn
from transformers import PreTrainedModel

from luthier.core.adapters.swap import generative
from luthier.models.load import task_of_class

TASKS: Mapping[str, str] = {
    "CAUSAL_LM": "causal-lm",
    "SEQ_2_SEQ_LM": "seq2seq",
    "SEQ_CLS": "classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "embedding",
}
HEADS = {"SEQ_CLS": {"classifier", "score"}, "TOKEN_CLS": {"classifier", "score"}}
"""Names of heads that peft takes to be saved whole wherever the task is said, and does not load without."""


def task_type(model: nn.Module, saved: Iterable[str]) -> str | None:
    """Returns peft's word for what a model does, of which the modules `saved` travel whole; None where its class for
    the task would not run it: one that reads something else than tokens, or a head that stays as it was."""
    if not isinstance(model, PreTrainedModel) or model.main_input_name != "input_ids":
        return None
    if generative(model):
        return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    served = task_of_class(vars(type(model)).get("_luthier_base", type(model)).__name__)
    found = next((told for told, task in TASKS.items() if task == served), "")
    return found if HEADS.get(found, set()) & set(saved) else None


HEAD = re.compile(r"(^|\.)(score|classifier)(\.modules_to_save(\.\w+)?)?(\.out_proj)?\.weight$")


def one_output(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Returns whether the head in a file gives one number, as a reward model's does; peft calls it a classifier."""
    return any(shape[:1] == (1,) for key, shape in shapes.items() if HEAD.search(key))
