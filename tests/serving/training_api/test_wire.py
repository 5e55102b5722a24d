"""The wire format against bytes that tinker 0.38.0 really sent, and what its own classes make of answers."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from luthier.core.errors import LuthierError
from luthier.serving.training_api import asks
from luthier.serving.training_api.sampling import table
from luthier.serving.training_api.tensors import json_tensor, output
from luthier.serving.training_api.wire import decode, encode

RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())
SENT = [each for each in RECORDED["calls"] if each["path"] == "forward_backward"]
PLAIN = [base64.b64decode(each["body"]) for each in SENT if "content-encoding" not in each["headers"]]


def test_a_request_is_written_as_it_was_sent_up_to_the_order_of_its_maps():
    for raw in PLAIN:
        read = decode("ForwardBackwardRequest", raw)
        again = encode("ForwardBackwardRequest", read)
        assert len(again) == len(raw) and decode("ForwardBackwardRequest", again) == read


def test_what_a_pass_asks_is_read_as_it_was_meant():
    plain, policy, sparse = (asks.asked(raw, asks.PROTOBUF, 90, 128) for raw in PLAIN)
    assert [(each.model, each.seq, each.forward_only) for each in (plain, policy, sparse)] == [
        ("S:train:0", 1, False), ("S:train:0", 2, False), ("S:train:0", 3, True)]  # fmt: skip
    assert plain.data[0].tokens == [1, 2, 3] and plain.data[0].targets.tolist() == [2, 3, 0]
    assert plain.data[0].inputs["weights"].tolist() == [0, 1, 1] and plain.data[0].prompt() == 2
    assert policy.settings == {"clip_low_threshold": 0.9, "clip_high_threshold": 1.2}
    assert policy.data[1].inputs["advantages"].tolist() == [0, 0.5, -0.5]
    wide = sparse.data[0]
    assert wide.targets.tolist() == [[0, 5, 0, 0], [0, 0, 6, 0], [7, 0, 0, 0]]
    assert wide.wanted.sum() == 3 and wide.inputs["weights"].tolist() == (wide.wanted * 0.5).tolist()
    assert [row.targets for row in wide.rows()][1] == [5, -100, -100]


def test_packed_bodies_are_the_plain_ones():
    zstandard = pytest.importorskip("zstandard")
    packed = [base64.b64decode(each["body"]) for each in SENT if each["headers"].get("content-encoding") == "zstd"]
    unpacked = [zstandard.ZstdDecompressor().stream_reader(raw).read() for raw in packed]
    assert [decode("ForwardBackwardRequest", raw) for raw in unpacked] == [
        decode("ForwardBackwardRequest", raw) for raw in PLAIN
    ]


def test_answers_are_byte_for_byte_those_of_the_client_s_own_classes():
    passed = output([np.array([-1.0, -2.0]), np.array([-3.0])], {"loss:sum": 6.5})
    assert passed == base64.b64decode(RECORDED["outputs"]["ForwardBackwardOutput"])
    one = {"tokens": np.array([5], "<i4").tobytes(), "logprobs": np.array([-1], "<f4").tobytes(),
           "topk_sampled_logprobs": table([[(5, -1.0), (6, -2.0)]], 2)}  # fmt: skip
    sampled = encode("SampleResponse", {
        "sequences": [{"stop_reason": 0, **one}, {"stop_reason": 1, **one}],
        "prompt_logprobs": np.array([np.nan, -1], "<f4").tobytes(),
    })  # fmt: skip
    assert sampled == base64.b64decode(RECORDED["outputs"]["SampleResponse"])


def test_numbers_of_any_sign_and_size_come_back():
    for value in (0, 1, 127, 128, -1, 2**31 - 1, -(2**63), 2**63 - 1):
        told = {"type_tag": "é", "num_datums": value, "fields": {}}
        assert decode("Record", encode("Record", told)).get("num_datums", 0) == value


@pytest.mark.parametrize("raw", [b"\xff" * 12, b"\x0a\x7f12", b"\x12\x01a", b"\xfa\x01\x00", b"\x1a\x03\x0a\x01\x12"])
def test_what_is_no_message_is_refused(raw):
    with pytest.raises(LuthierError):
        decode("ForwardBackwardRequest", raw)


@pytest.mark.parametrize(("given", "says"), [
    ({"data": [1, 2], "dtype": "float32", "shape": [3]}, "do not fill the shape"),
    ({"data": [[1], [2]], "dtype": "float32"}, "flat list"),
    ({"data": [1], "dtype": "int8"}, "int8"),
    ({"data": [1], "dtype": "int64", "shape": [2**40, 2**40]}, "too large"),
    ({"data": [1], "dtype": "int64", "shape": [2, 2], "sparse_crow_indices": [0, 1, 9], "sparse_col_indices": [0]},
     "do not fit"),
])  # fmt: skip
def test_tensors_that_do_not_add_up_are_refused(given, says):
    with pytest.raises(LuthierError, match=says):
        json_tensor("weights", given)
