"""A sentence encoder, with the adapter folded in, as sentence-transformers loads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from luthier.core.contracts.format import Format, Outgoing
from luthier.core.errors import LuthierError

MODULES = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
"""What a text goes through, with the folder of each."""


@dataclass(frozen=True)
class SentenceTransformers(Format):
    """e(x) = mean_t h_t / |mean_t h_t| with W + ΔW → modules.json, 1_Pooling, 2_Normalize, and the merged model

    `SentenceTransformer(folder)` gives the vectors of `luthier predict`: the mean of the last hidden states, of length
    1. The names of the modules are those that versions 2 to 6 read. The merged model is loaded again and compared with
    the adapted one on a small input.
    """

    paper = "sentence-transformers: Reimers and Gurevych 2019, arXiv 1908.10084"
    base_dtype: ClassVar[str] = "auto"
    loss: ClassVar[str] = "rounded"

    def check_base(self, model: nn.Module, processor: Any) -> None:
        from luthier.interop.formats._merged import check_whole

        check_whole(model, processor, "a sentence encoder")

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        from luthier.interop.formats.merged import Merged

        _refuse_on_head(outgoing)
        lost = Merged().write(outgoing, folder)
        _describe(outgoing.model, folder)
        return lost


def _refuse_on_head(outgoing: Outgoing) -> None:
    """Raises for a change of the head, which no vector would show."""
    from luthier.core.adapters.attach import find_state

    model: Any = outgoing.model
    head, state = model.get_output_embeddings(), find_state(model)
    components = [] if state is None else [each for each in state.components if each.name == outgoing.name]
    places = {site.module for component in components for site in component.sites}
    if head is not None and any(model.get_submodule(place) is head for place in places):
        raise LuthierError("the adapter changes the head of the model, and vectors are made without it.")


def _describe(model: Any, folder: Path) -> None:
    """Writes what stands beside the model."""
    from luthier.core.records import write_json
    from luthier.models import positions

    width = model.config.get_text_config().hidden_size
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(MODULES.items())
    ]
    write_json(folder / "modules.json", listed)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": positions(model), "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})
    for path in filter(None, MODULES.values()):
        (folder / path).mkdir()
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    others = ("cls_token", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    pooling |= {f"pooling_mode_{name}": False for name in others}
    write_json(folder / "1_Pooling" / "config.json", pooling | {"include_prompt": True})
