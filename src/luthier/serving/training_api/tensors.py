"""Tensors as the protocol sends them: dense or sparse rows (CSR), little-endian, in protobuf or JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from luthier.core.errors import LuthierError
from luthier.serving.training_api.wire import encode, joined

KINDS = {1: "<f4", 2: "<i8", 3: "<i4"}
"""Dtypes of numpy by the protocol's numbers."""
BFLOAT16 = 4
FLOAT32 = 1
NAMES = {"float32": "<f4", "int64": "<i8"}
LARGEST = 1 << 26
"""Elements of one tensor, so that a few bytes of indices do not ask for a terabyte."""


class Sent:
    """A tensor of a datum: its numbers, dense, and which of them were sent."""

    def __init__(self, values: np.ndarray, given: np.ndarray | None = None) -> None:
        self.values = values
        self.given = np.ones(values.shape, bool) if given is None else given


def tensor(name: str, message: Mapping[str, Any]) -> Sent:
    """Returns the tensor of a protobuf message; raises `LuthierError` where its bytes do not fit its shape."""
    shape = _shape(name, message["shape"])
    sparse = message.get("sparse_csr")
    kind = message.get("dtype", 0)
    if sparse is not None:
        values = _numbers(name, sparse.get("values", b""), kind)
        rows, columns = (_numbers(name, sparse.get(key, b""), 2) for key in ("crow_indices", "col_indices"))
        return _spread(name, values, rows, columns, shape)
    return _dense(name, _numbers(name, message.get("dense", b""), kind), shape)


def json_tensor(name: str, message: Mapping[str, Any]) -> Sent:
    """Returns the tensor of a JSON object `{data, dtype, shape, sparse_crow_indices, sparse_col_indices}`."""
    if strange := set(message) - {"data", "dtype", "shape", "sparse_crow_indices", "sparse_col_indices"}:
        raise LuthierError(f"{name}: {sorted(strange)[0]!r:.80} is unknown; expected data, dtype and shape.")
    dtype = message.get("dtype")
    if not isinstance(dtype, str) or dtype not in NAMES:
        raise LuthierError(f"{name}: dtype is {dtype!r:.80}; expected {' or '.join(NAMES)}.")
    values = _flat(f"{name}: data", message.get("data"), dtype)
    shape = _shape(name, [len(values)] if message.get("shape") is None else message["shape"])
    rows, columns = (message.get(f"sparse_{key}_indices") for key in ("crow", "col"))
    if rows is None and columns is None:
        return _dense(name, values, shape)
    rows, columns = (
        _flat(f"{name}: sparse_{key}_indices", each, "int64") for key, each in (("crow", rows), ("col", columns))
    )
    return _spread(name, values, rows, columns, shape)


def _flat(where: str, given: Any, dtype: str) -> np.ndarray:
    """The numbers of a flat JSON list, each of the kind that it is sent as: 1.5, true and "1" are no whole numbers."""
    kinds, wanted = ((int,), "whole numbers of 64 bits") if dtype == "int64" else ((int, float), "numbers")
    try:
        if isinstance(given, list) and all(type(each) in kinds for each in given):
            with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused as that
                return np.asarray(given, NAMES[dtype])
    except OverflowError:
        pass
    raise LuthierError(f"{where} is not a flat list of {wanted}.")


def _shape(name: str, given: Any) -> tuple[int, ...]:
    if not isinstance(given, list) or not all(type(each) is int and each >= 0 for each in given):
        raise LuthierError(f"{name}: shape is {given!r:.80}; expected a list of sizes.")
    if math.prod(given) > LARGEST:
        raise LuthierError(f"{name}: a tensor of shape {given} is too large; at most {LARGEST:,} numbers.")
    return tuple(given)


def _numbers(name: str, raw: bytes, kind: int) -> np.ndarray:
    """The numbers that bytes hold; bfloat16 is the upper half of a float32."""
    size = np.dtype(KINDS[kind]).itemsize if kind in KINDS else 2
    if (kind not in KINDS and kind != BFLOAT16) or len(raw) % size:
        raise LuthierError(f"{name}: {len(raw)} bytes are no numbers of dtype {kind}.")
    if kind == BFLOAT16:
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(raw, KINDS[kind])


def _dense(name: str, values: np.ndarray, shape: tuple[int, ...]) -> Sent:
    if len(values) != math.prod(shape):
        raise LuthierError(f"{name}: {len(values)} numbers do not fill the shape {list(shape)}.")
    return Sent(values.reshape(shape))


def _spread(name: str, values: np.ndarray, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, ...]) -> Sent:
    """A matrix of sparse rows; what was not sent is zero, and told apart from a zero that was."""
    right = (
        len(shape) == 2
        and len(rows) == shape[0] + 1
        and rows[0] == 0
        and rows[-1] == len(values) == len(columns)
        and bool((np.diff(rows) >= 0).all())
        and bool(((columns >= 0) & (columns < shape[1])).all())
    )
    if not right:
        raise LuthierError(
            f"{name}: sparse_crow_indices and sparse_col_indices do not fit {len(values)} numbers of the shape "
            f"{list(shape)}."
        )
    made, given = np.zeros(shape, values.dtype), np.zeros(shape, bool)
    lines = np.repeat(np.arange(shape[0]), np.diff(rows))
    made[lines, columns], given[lines, columns] = values, True
    return Sent(made, given)


# --- what is sent back ---


def batched(arrays: Sequence[np.ndarray]) -> dict[str, Any]:
    """Returns the field of a record: an array of float32 for each datum, [T] or [T, K] with one K."""
    data, offsets = joined([np.ascontiguousarray(each, "<f4").tobytes() for each in arrays])
    trailing = list(arrays[0].shape[1:]) if arrays else []
    return {
        "data": data,
        "offsets": np.asarray(offsets, "<i8").tobytes(),
        "dtype": FLOAT32,
        "trailing_shape": trailing,
    }


def output(log_probs: Sequence[np.ndarray], metrics: Mapping[str, float]) -> bytes:
    """Returns a ForwardBackwardOutput: log-probabilities of each datum's targets, and metrics by `name:reduction`.

    Datums of different widths [T, K] come as several records, each with one width, in their order.
    """
    records: list[list[np.ndarray]] = []
    for each in log_probs:
        if records and records[-1][0].shape[1:] == each.shape[1:]:
            records[-1].append(each)
        else:
            records.append([each])
    told = [{"type_tag": "ArrayRecord", "fields": {"logprobs": batched(group)}, "num_datums": len(group)}
            for group in records]  # fmt: skip
    return encode(
        "ForwardBackwardOutput",
        {"loss_fn_output_type": "ArrayRecord", "loss_fn_outputs": told, "metrics": dict(metrics)},
    )
