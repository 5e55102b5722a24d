"""What `forward_backward` asks: read from protobuf or JSON, checked, and made into work for a pool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.serving.http.bodies import fields_of
from luthier.serving.training_api.bodies import LARGEST
from luthier.serving.training_api.losses import Inputs, LossFunction, loss_named, total
from luthier.serving.training_api.tensors import Sent, json_tensor, tensor
from luthier.serving.training_api.wire import decode
from luthier.training.together import Row, Work
from luthier.training.together.work import IGNORED

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
TARGETS = "target_tokens"


@dataclass(frozen=True)
class Datum:
    """One example: tokens, the targets behind each, [T] or [T, K], and what its loss needs."""

    tokens: list[int]
    targets: np.ndarray
    wanted: np.ndarray
    """Whether a target was sent at all, of its shape."""
    inputs: Inputs

    def rows(self) -> list[Row]:
        """Its rows: one for each of the K targets of a position."""
        targets = np.where(self.wanted, self.targets, IGNORED)
        columns = targets[:, None] if targets.ndim == 1 else targets
        return [Row(self.tokens, columns[:, k].tolist(), self.prompt()) for k in range(columns.shape[1])]

    def prompt(self) -> int:
        """Tokens of the prompt: those up to the first with a weight or an advantage."""
        told = self.inputs.get("weights", self.inputs.get("advantages"))
        if told is None:
            return len(self.tokens)
        acting = told.ne(0).reshape(len(self.tokens), -1).any(1).nonzero()
        return int(acting[0]) + 1 if len(acting) else len(self.tokens)

    def shaped(self, parts: Sequence[Tensor]) -> Tensor:
        """Returns the log-probabilities of its rows in the shape of its targets."""
        return parts[0] if self.targets.ndim == 1 else torch.stack(list(parts), 1)


@dataclass(frozen=True)
class Ask:
    """A whole request."""

    model: str
    seq: int
    loss: LossFunction
    settings: Mapping[str, float]
    data: list[Datum]
    forward_only: bool

    @property
    def tokens(self) -> int:
        """Tokens that a pass reads."""
        return sum(len(row.tokens) for datum in self.data for row in datum.rows())

    def pieces(self, most: int) -> Iterator[list[Datum]]:
        """The data in groups of at most `most` tokens; one that is longer comes alone."""
        group: list[Datum] = []
        size = 0
        for datum in self.data:
            longer = sum(len(row.tokens) for row in datum.rows())
            if group and size + longer > most:
                yield group
                group, size = [], 0
            group.append(datum)
            size += longer
        if group:
            yield group

    def work(self, adapter: str, data: Sequence[Datum]) -> Work:
        """Returns some of its data as work of an adapter."""
        value = total(self.loss, self.settings, [datum.inputs for datum in data])
        rows = [row for datum in data for row in datum.rows()]
        return Work(adapter, rows, lambda log_probs: value(gathered(data, log_probs)))


def gathered(data: Sequence[Datum], log_probs: Sequence[Tensor]) -> list[Tensor]:
    """Returns the log-probabilities of rows by datum."""
    parts = iter(log_probs)
    return [datum.shaped([next(parts) for _ in datum.rows()]) for datum in data]


# --- reading ---


def head(body: bytes, media: str) -> tuple[str, int]:
    """Returns the model and number of a request, as far as they can be read; raises `LuthierError`."""
    given = _fields(body, media)
    model, seq = given.get("model_id"), given.get("seq_id")
    if not isinstance(model, str) or type(seq) is not int or not 1 <= seq <= LARGEST:
        raise LuthierError(f"model_id is {model!r:.80} and seq_id {seq!r:.20}; expected a text and a number from 1.")
    return model, seq


@guarded("the request cannot be read")
def asked(body: bytes, media: str, words: int, longest: int | None, forward_only: bool = False) -> Ask:
    """Returns a request that is right: `words` in the vocabulary, rows of at most `longest` tokens.

    Raises `LuthierError` for anything else.
    """
    model, seq = head(body, media)
    given = _fields(body, media)
    inner, read = (given, _from_protobuf) if media == PROTOBUF else (_inner(given), _from_json)
    config = _config(inner)
    loss, settings = loss_named(inner.get("loss_fn", ""), config)
    listed = inner.get("data")
    if not isinstance(listed, list) or not listed:
        raise LuthierError("data: there are no examples; send at least one.")
    data = [read(f"data[{i}]", each, loss, words, longest) for i, each in enumerate(listed)]
    return Ask(model, seq, loss, settings, data, forward_only or bool(given.get("forward_only", 0)))


def _fields(body: bytes, media: str) -> dict[str, Any]:
    if media == PROTOBUF:
        return decode("ForwardBackwardRequest", body)
    return fields_of(body)


INNER = ("forward_backward_input", "forward_input")


def _inner(given: Mapping[str, Any]) -> dict[str, Any]:
    """The input of a JSON body."""
    found = [key for key in INNER if key in given]
    strange = set(given) - {"model_id", "seq_id", "type", *found[:1]}
    if len(found) != 1 or strange or not isinstance(given[found[0]], dict):
        raise LuthierError(f"expected model_id, seq_id, type and {INNER[0]}; found {sorted(given)}.")
    inner = given[found[0]]
    if strange := set(inner) - {"data", "loss_fn", "loss_fn_config"}:
        raise LuthierError(f"{found[0]}: {sorted(strange)[0]!r} is unknown; expected data, loss_fn, loss_fn_config.")
    return inner


def _config(inner: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the loss; the second map of the protocol holds texts too, and stands where both are there."""
    newer = {key: each["text"] if "text" in each else each.get("number", 0.0)
             for key, each in inner.get("loss_fn_config_v2", {}).items()}  # fmt: skip
    older = {} if inner.get("loss_fn_config") is None else inner["loss_fn_config"]
    if not isinstance(older, dict):
        raise LuthierError("loss_fn_config: expected an object of numbers.")
    return {**older, **newer}


def _from_protobuf(where: str, given: Mapping[str, Any], loss: LossFunction, words: int, longest: int | None) -> Datum:
    tokens: list[int] = []
    for chunk in given["model_input"]:
        if "encoded_text" not in chunk:
            raise LuthierError(
                f"{where}: its input holds {'/'.join(chunk) or 'nothing'}; only text is trained on here."
            )
        raw = chunk["encoded_text"].get("tokens", b"")
        if len(raw) % 4:
            raise LuthierError(f"{where}: {len(raw)} bytes are no tokens of four bytes each.")
        tokens += np.frombuffer(raw, "<i4").tolist()
    sent = {key: tensor(f"{where}.{key}", each) for key, each in given["loss_fn_inputs"].items()}
    return _datum(where, tokens, sent, loss, words, longest)


def _from_json(where: str, given: Any, loss: LossFunction, words: int, longest: int | None) -> Datum:
    if not isinstance(given, dict) or set(given) - {"model_input", "loss_fn_inputs"} or len(given) < 2:
        raise LuthierError(f"{where}: expected an object with model_input and loss_fn_inputs.")
    tokens = text_tokens(f"{where}.model_input", given["model_input"])
    inputs = given["loss_fn_inputs"]
    if not isinstance(inputs, dict) or not all(isinstance(each, dict) for each in inputs.values()):
        wrong = [key for key, each in inputs.items() if not isinstance(each, dict)] if isinstance(inputs, dict) else []
        raise LuthierError(f"{where}.{'.'.join(['loss_fn_inputs', *wrong[:1]])}: expected an object of tensors.")
    return _datum(where, tokens, {key: json_tensor(f"{where}.{key}", each) for key, each in inputs.items()},
                  loss, words, longest)  # fmt: skip


def text_tokens(where: str, given: Any) -> list[int]:
    """Returns the tokens of a JSON `{chunks: [{type: encoded_text, tokens: […]}]}`."""
    chunks = given.get("chunks") if isinstance(given, dict) else None
    if not isinstance(chunks, list):
        raise LuthierError(f"{where}: expected an object with a list of chunks.")
    tokens: list[int] = []
    for number, chunk in enumerate(chunks):
        if not isinstance(chunk, dict):
            raise LuthierError(f"{where}.chunks[{number}]: expected an object, not {type(chunk).__name__}.")
        if (kind := chunk.get("type", "encoded_text")) != "encoded_text":
            raise LuthierError(f"{where}.chunks[{number}]: its type is {kind!r:.80}; only encoded_text is taken here.")
        listed = chunk.get("tokens")
        if not isinstance(listed, list) or not all(type(each) is int for each in listed):
            raise LuthierError(f"{where}.chunks[{number}]: its tokens are no list of whole numbers.")
        tokens += listed
    return tokens


def _datum(
    where: str, tokens: list[int], sent: Mapping[str, Sent], loss: LossFunction, words: int, longest: int | None
) -> Datum:
    """One example, once it is whole."""
    _check_tokens(where, tokens, words, longest)
    known = {TARGETS, *loss.needs, *loss.takes}
    if strange := set(sent) - known:
        raise LuthierError(
            f"{where}: the loss does not read {sorted(strange)[0]!r}; expected {', '.join(sorted(known))}."
        )
    if lacking := [key for key in (TARGETS, *loss.needs) if key not in sent]:
        raise LuthierError(f"{where}: the loss needs {lacking[0]!r}, which is not there.")
    targets = sent[TARGETS].values
    if targets.dtype.kind != "i" or targets.ndim not in (1, 2) or targets.shape[0] != len(tokens) or not targets.size:
        raise LuthierError(
            f"{where}: {TARGETS} has the shape {list(targets.shape)} of {targets.dtype.name}; expected whole numbers, "
            f"one ([{len(tokens)}]) or K ([{len(tokens)}, K]) for each token."
        )
    given = sent[TARGETS].given
    if ((targets < 0) | (targets >= words))[given].any():
        raise LuthierError(f"{where}: a target is none of the model's {words} tokens.")
    inputs = {key: _numbers(where, key, each.values, targets.shape) for key, each in sent.items() if key != TARGETS}
    if wrong := loss.wrong(inputs):
        raise LuthierError(f"{where}: {wrong}")
    return Datum(tokens, targets, given, inputs)


def _check_tokens(where: str, tokens: Sequence[int], words: int, longest: int | None) -> None:
    most = "" if longest is None else f" to {longest}"
    if not tokens or (longest is not None and len(tokens) > longest):
        raise LuthierError(f"{where}: its chunks have {len(tokens)} tokens; expected 1{most}.")
    if wrong := [each for each in tokens if not 0 <= each < words]:
        raise LuthierError(f"{where}: tokens hold {wrong[0]!r:.40}, which is none of the model's {words}.")


def _numbers(where: str, key: str, values: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    if values.shape != shape:
        raise LuthierError(f"{where}: {key} has the shape {list(values.shape)}, and {TARGETS} {list(shape)}.")
    if not np.isfinite(values).all():
        raise LuthierError(f"{where}: {key} holds NaN, infinity, or what float32 cannot hold.")
    return torch.from_numpy(np.array(values, np.float32))
