"""The classes to try, by transformers' own auto mappings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers as tf
from transformers.models.auto import modeling_auto

FAMILIES = {
    "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "sequence-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "masked-lm": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "speech-seq2seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "ctc": "MODEL_FOR_CTC_MAPPING_NAMES",
    "image-classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "audio-classification": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
}
"""The auto mapping of each family."""


@dataclass(frozen=True)
class Known:
    """A model class of a family."""

    family: str
    type: str
    """transformers' name of the architecture."""
    name: str
    """The class."""

    @property
    def config(self) -> type[tf.PreTrainedConfig]:
        """Its configuration class."""
        return tf.CONFIG_MAPPING[self.type]

    @property
    def model(self) -> Any:
        """The class itself."""
        return getattr(tf, self.name)


def known(families: list[str] | None = None) -> list[Known]:
    """Every class of the families (none: all), each once, in the order of the mappings."""
    found: dict[str, Known] = {}
    for family in families or FAMILIES:
        for kind, names in getattr(modeling_auto, FAMILIES[family]).items():
            for name in (names,) if isinstance(names, str) else names:
                found.setdefault(name, Known(family, kind, name))
    return list(found.values())
