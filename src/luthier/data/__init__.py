"""Data: what the model is fitted to. Sources, layouts, tokens in the loss, batches, scores.

examples = load("train.jsonl")                       # every bad row is told before any work
features = encode_all(examples, tokenizer, max_length=1024)
batch = collator_for(examples.task, tokenizer)(features[:8])
"""

from luthier.core.contracts.example import Example, Examples, Scorer, last_answer, split, without
from luthier.data.collate import Collator, collate, collator_for, length_of
from luthier.data.digest import digest
from luthier.data.encode import TASKS, encode, encode_all, encode_classification, encode_seq2seq
from luthier.data.heard import unheard
from luthier.data.inputs import Inputs, load_inputs
from luthier.data.kept import encode_kept
from luthier.data.layout import LAYOUTS
from luthier.data.load import kind_of_rows, load, load_prompts, meanings, split_gym
from luthier.data.media import encode_audio, encode_image
from luthier.data.preference import kind_of
from luthier.data.score import SCORERS, judge, refuse_unscorable, scorer_for
from luthier.data.select import Chosen, choose, with_shots
from luthier.data.show import show_example, show_plain
from luthier.data.sizes import Measured, each_with, sizes_of
from luthier.data.sources import read
from luthier.data.states import states_by, states_of
from luthier.data.tokens import prompt_ids, prompt_of, stop_text
from luthier.data.told import told

__all__ = [
    "LAYOUTS",
    "SCORERS",
    "TASKS",
    "Chosen",
    "Collator",
    "Example",
    "Examples",
    "Inputs",
    "Measured",
    "Scorer",
    "choose",
    "collate",
    "collator_for",
    "digest",
    "each_with",
    "encode",
    "encode_all",
    "encode_audio",
    "encode_classification",
    "encode_image",
    "encode_kept",
    "encode_seq2seq",
    "judge",
    "kind_of",
    "kind_of_rows",
    "last_answer",
    "length_of",
    "load",
    "load_inputs",
    "load_prompts",
    "meanings",
    "prompt_ids",
    "prompt_of",
    "read",
    "refuse_unscorable",
    "scorer_for",
    "show_example",
    "show_plain",
    "sizes_of",
    "split",
    "split_gym",
    "states_by",
    "states_of",
    "stop_text",
    "told",
    "unheard",
    "with_shots",
    "without",
]
