"""Encoding for training: many rows go to disk, and are encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.cached import writable
from luthier.core.contracts.example import Examples
from luthier.core.lazy import Lazy
from luthier.data.bad import refuse
from luthier.data.encode import Feature, Options, encode_all, encoder_of, features_of
from luthier.data.stored import KIND, key_of, stored

MANY = 2000
"""Rows from which on encoding is worth keeping."""


def encode_kept(
    examples: Examples,
    processor: Any,
    *,
    task: str | None = None,
    max_length: int | None,
    labels: list[str] | None = None,
    truncate: bool = False,
    skip_bad_rows: bool = False,
    positions: int | None = None,
    pictures: bool = False,
) -> Sequence[Feature]:
    """Returns `encode_all`, whose features stay on disk where there are many rows of tokens.

    They lie in `$LUTHIER_CACHE/encoded` (`~/.cache/luthier/encoded`) under a name made of the rows, the tokenizer, the
    settings and the code, so the same rows are encoded once; several processes encode them (`$LUTHIER_WORKERS`). Rows
    of pictures and sounds stay in memory, and so do rows that are there already where the cache cannot be written.
    """
    task = task or examples.task
    options = Options(max_length, labels if labels is not None else examples.labels, truncate, positions, pictures)
    if not _worth(examples, processor):
        return encode_all(
            examples,
            processor,
            task=task,
            max_length=max_length,
            labels=labels,
            truncate=truncate,
            skip_bad_rows=skip_bad_rows,
            positions=positions,
            pictures=pictures,
        )
    encoder = encoder_of(task)
    settings = {"task": task, "most": options.most, "labels": options.labels, "truncate": truncate}
    bound = {"max_length": max_length, "positions": positions, "pictures": pictures}  # what a bad row is told by
    found = stored(
        examples,
        lambda example: features_of(example, processor, encoder, options),
        key_of(examples, processor, settings | bound),
        {"source": examples.source, "tokenizer": str(processor.name_or_path), **settings},
    )
    if found.bad and not (skip_bad_rows and len(found)):
        raise refuse(examples.source, found.bad, len(examples))
    return found


def _worth(examples: Examples, processor: Any) -> bool:
    from transformers import PreTrainedTokenizerFast

    many = isinstance(examples.rows, Lazy) or (len(examples) >= MANY and writable(KIND))
    return many and isinstance(processor, PreTrainedTokenizerFast)
