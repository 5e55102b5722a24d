"""What a speech model writes down of sounds, a batch after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier import data, models
from luthier.core.errors import LuthierError
from luthier.core.sites.probe import eval_mode
from luthier.data.options import Feature
from luthier.data.speech import parts
from luthier.engine.outputs import Reading
from luthier.engine.settings import Sampling, within
from luthier.engine.stops import stop_ids, text_of
from luthier.models.half import in_its_dtype
from luthier.models.quiet import quiet

if TYPE_CHECKING:
    from torch import Tensor

Said = tuple[str, list[int]]
"""A text and its tokens, up to the one that stops."""
LABELS = "labels"


def transcribed(reading: Reading, features: Sequence[Feature], sampling: Sampling) -> list[Said]:
    """Returns what the model says of each sound, behind its start token and the `labels` of its features."""
    import torch

    from luthier.core.adapters.control import routed

    model, tokenizer = reading.model, parts(reading.processor)[1]
    stops, found = stop_ids(model, tokenizer), [("", [])] * len(features)
    order = sorted(range(len(features)), key=lambda i: (len(features[i][LABELS]), -data.length_of(features[i])))
    with eval_mode(model), torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(sampling.seed)
        for chosen in _batches(order, features, reading.batch):
            with routed(model, reading.tasks and [reading.tasks[i] for i in chosen]):
                new = _continued(reading, [features[i] for i in chosen], sampling, stops)
            for i, ids in zip(chosen, new.tolist(), strict=True):
                found[i] = text_of(tokenizer, ids, stops).strip(), _kept(ids, stops)
            reading.done(len(chosen))
    return found


def _batches(order: list[int], features: Sequence[Feature], size: int) -> list[list[int]]:
    """Rows of prefixes of one length together."""
    lengths = dict.fromkeys(len(features[i][LABELS]) for i in order)
    groups = [[i for i in order if len(features[i][LABELS]) == length] for length in lengths]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


def _continued(reading: Reading, features: list[Feature], sampling: Sampling, stops: list[int]) -> Tensor:
    """The new tokens of each row [rows, at most max_new_tokens], by transformers' own loop.

    Whisper's own `generate` is for recordings of any length with time stamps; for one window without, it comes to this.
    """
    import torch
    from transformers import GenerationConfig, GenerationMixin

    model, held = reading.model, reading.model.generation_config
    inputs = data.collator_for(models.SPEECH, reading.processor)(features)
    inputs.pop("rows")
    before = torch.cat([torch.full((len(features), 1), start_of(model)), inputs.pop(LABELS).long()], 1)
    inputs = in_its_dtype(model, {name: value.to(model.device) for name, value in inputs.items()})
    fitting = within(sampling, before.shape[1], models.positions(model))
    config = fitting.config(stops, stops[0] if stops else 0)
    config.update(
        suppress_tokens=getattr(held, "suppress_tokens", None),
        begin_suppress_tokens=getattr(held, "begin_suppress_tokens", None),
        decoder_start_token_id=start_of(model),
    )
    plain: Any = GenerationMixin
    model.generation_config = GenerationConfig()
    try:
        with quiet():  # which asks for a mask of sounds that are of one length
            whole = plain.generate(model, **inputs, decoder_input_ids=before.to(model.device), generation_config=config)
    finally:
        model.generation_config = held
    return whole[:, before.shape[1] :]


def start_of(model: Any) -> int:
    """Returns the token that starts the decoder."""
    told = (getattr(each, "decoder_start_token_id", None) for each in (model.config, model.generation_config))
    found = next((token for token in told if token is not None), None)
    if found is None:
        raise LuthierError(f"{type(model).__name__} does not say what starts its decoder (decoder_start_token_id).")
    return int(found)


def _kept(ids: list[int], stops: list[int]) -> list[int]:
    return ids[: next((i + 1 for i, token in enumerate(ids) if token in stops), len(ids))]
