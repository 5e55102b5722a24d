"""Data: what the model is fitted to. Sources, layouts, tokens in the loss, batches, scores.

    examples = load("train.jsonl")                       # every bad row is told before any work
    features = encode_all(examples, tokenizer, max_length=1024)
    batch = collator_for(examples.task, tokenizer)(features[:8])

The files of this folder that open with `_` are the plumbing, re-exported here; the others are
components (selections of examples), found by discovery.
"""

from luthier.core.component import attributes, plugin_folders
from luthier.data._collate import Collator, collate, collator_for, length_of
from luthier.data._encode import TASKS, encode, encode_all, encode_classification, encode_seq2seq
from luthier.data._example import Example, Examples, last_answer, split, without
from luthier.data._gym import split_gym
from luthier.data._layout import LAYOUTS
from luthier.data._load import load
from luthier.data._media import encode_audio, encode_image
from luthier.data._read import read
from luthier.data._score import SCORERS, Scorer, scorer_for
from luthier.data._select import Chosen, choose, with_shots
from luthier.data._show import show_example, show_plain
from luthier.data._states import states_by, states_of
from luthier.data._tokens import prompt_ids, prompt_of

AXIS = "on what?"
__path__ += plugin_folders("data")
__getattr__ = attributes("data")

__all__ = [
    "LAYOUTS",
    "SCORERS",
    "TASKS",
    "Chosen",
    "Collator",
    "Example",
    "Examples",
    "Scorer",
    "choose",
    "collate",
    "collator_for",
    "encode",
    "encode_all",
    "encode_audio",
    "encode_classification",
    "encode_image",
    "encode_seq2seq",
    "last_answer",
    "length_of",
    "load",
    "prompt_ids",
    "prompt_of",
    "read",
    "scorer_for",
    "show_example",
    "show_plain",
    "split",
    "split_gym",
    "states_by",
    "states_of",
    "with_shots",
    "without",
]
