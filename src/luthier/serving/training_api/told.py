"""Results of passes and samples as JSON, for clients that read no protobuf."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from luthier.serving.training_api.wire import decode


def as_json(kind: str, raw: bytes) -> dict[str, Any]:
    """Returns a kept result as the protocol's JSON."""
    return _passed(decode("ForwardBackwardOutput", raw)) if kind == "forward_backward" else _sampled(raw)


def _passed(found: Mapping[str, Any]) -> dict[str, Any]:
    outputs = []
    for record in found["loss_fn_outputs"]:
        field = record["fields"]["logprobs"]
        offsets = np.frombuffer(field.get("offsets", b""), "<i8") // 4
        values, trailing = np.frombuffer(field.get("data", b""), "<f4"), field["trailing_shape"]
        for start, stop in itertools.pairwise(offsets):
            shape = [int(stop - start) // math.prod(trailing), *trailing]
            told = {"data": values[start:stop].tolist(), "dtype": "float32", "shape": shape}
            outputs.append({"logprobs": told})
    return {
        "loss_fn_output_type": found.get("loss_fn_output_type", ""),
        "loss_fn_outputs": outputs,
        "metrics": found["metrics"],
    }


def _sampled(raw: bytes) -> dict[str, Any]:
    found = decode("SampleResponse", raw)
    sequences = [
        {
            "stop_reason": "length" if each.get("stop_reason") else "stop",
            "tokens": np.frombuffer(each.get("tokens", b""), "<i4").tolist(),
            "logprobs": np.frombuffer(each.get("logprobs", b""), "<f4").tolist(),
            "topk_logprobs": _table(each.get("topk_sampled_logprobs")),
        }
        for each in found["sequences"]
    ]
    prompt = found.get("prompt_logprobs")
    values = None if prompt is None else np.frombuffer(prompt, "<f4").tolist()
    return {
        "type": "sample",
        "sequences": sequences,
        "prompt_logprobs": None if values is None else [None if each != each else each for each in values],
        "topk_prompt_logprobs": _table(found.get("topk_prompt_logprobs")),
    }


def _table(found: Mapping[str, Any] | None) -> list[list[list[float]]] | None:
    """Alternatives of each place as [token, log p], empty cells left out."""
    if found is None:
        return None
    k = found["k"]
    ids, values = np.frombuffer(found["token_ids"], "<i4"), np.frombuffer(found["logprobs"], "<f4")
    cells = [[int(token), float(value)] for token, value in zip(ids, values, strict=True)]
    lines = [cells[i : i + k] for i in range(0, len(cells), k)]
    return [[cell for cell in line if cell[1] > -9999] for line in lines]
