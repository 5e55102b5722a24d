"""Protobuf's wire format, for the few messages of the protocol: read strictly, written as the official client reads it.

A schema names the fields of each message by their numbers. Wire types: 0 varint, 1 eight bytes, 2 length and bytes,
5 four bytes (https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.core.errors import LuthierError

VARINT, EIGHT, BYTES = 0, 1, 2


@dataclass(frozen=True)
class Field:
    """One field: its name and its kind, which is int, double, bytes, text or the name of a message."""

    name: str
    kind: str
    many: bool = False
    key: bool = False
    """Whether it is a map from texts: entries with a key (1) and a value (2) of this kind."""


def _one(name: str, kind: str) -> Field:
    return Field(name, kind)


def _many(name: str, kind: str) -> Field:
    return Field(name, kind, many=True)


def _map(name: str, kind: str) -> Field:
    return Field(name, kind, key=True)


_SPAN = {1: _one("sequence_id", "text"), 2: _one("offset", "int"), 3: _one("length", "int")}
MESSAGES: Mapping[str, Mapping[int, Field]] = {
    "ForwardBackwardRequest": {
        1: _one("model_id", "text"),
        2: _one("seq_id", "int"),
        3: _many("data", "Datum"),
        4: _one("loss_fn", "text"),
        5: _map("loss_fn_config", "double"),
        6: _one("forward_only", "int"),
        7: _map("loss_fn_config_v2", "Setting"),
    },
    "Setting": {1: _one("number", "double"), 2: _one("text", "text")},
    "Datum": {
        1: _many("model_input", "Chunk"),
        2: _map("loss_fn_inputs", "Tensor"),
        3: _many("model_input_spans", "Span"),
        4: _many("loss_fn_input_spans", "Span"),
    },
    "Span": {1: _one("prompt_tokens", "Tokens"), 2: _one("sampled_tokens", "Tokens")},
    "Tokens": _SPAN,
    "Chunk": {1: _one("encoded_text", "Text"), 2: _one("image", "Picture"), 3: _one("dmel", "Sound")},
    "Text": {1: _one("tokens", "bytes")},
    "Picture": {1: _one("data", "bytes"), 2: _one("format", "text"), 3: _one("expected_tokens", "int"),
                4: _one("override_dimensions", "bytes")},
    "Sound": {1: _one("dmel", "bytes")},
    "Tensor": {
        1: _one("dense", "bytes"),
        2: _one("sparse_csr", "Csr"),
        3: _one("dtype", "int"),
        4: _many("shape", "int"),
    },
    "Csr": {1: _one("values", "bytes"), 2: _one("crow_indices", "bytes"), 3: _one("col_indices", "bytes")},
    "ForwardBackwardOutput": {
        1: _one("loss_fn_output_type", "text"),
        2: _many("loss_fn_outputs", "Record"),
        3: _map("metrics", "double"),
    },
    "Record": {1: _one("type_tag", "text"), 2: _map("fields", "Batched"), 3: _one("num_datums", "int")},
    "Batched": {
        1: _one("data", "bytes"),
        2: _one("offsets", "bytes"),
        3: _one("dtype", "int"),
        4: _many("trailing_shape", "int"),
    },
    "SampleResponse": {
        1: _many("sequences", "Sequence"),
        2: _one("prompt_logprobs", "bytes"),
        3: _one("topk_prompt_logprobs", "TopK"),
        4: _one("prompt_cache_hit_tokens", "int"),
        5: _one("target_prompt_logprobs", "Tensor"),
    },
    "Sequence": {
        1: _one("stop_reason", "int"),
        2: _one("tokens", "bytes"),
        3: _one("logprobs", "bytes"),
        4: _one("topk_sampled_logprobs", "TopK"),
    },
    "TopK": {1: _one("token_ids", "bytes"), 2: _one("logprobs", "bytes"), 3: _one("k", "int"),
             4: _one("length", "int")},
}  # fmt: skip
"""The messages that are read and written. A field that is none of these is refused: it would be ignored."""


# --- reading ---


def decode(message: str, raw: bytes) -> dict[str, Any]:
    """Returns the fields that a message has, lists and maps also where they are empty.

    Raises `LuthierError` for bytes that are no such message.
    """
    schema = MESSAGES[message]
    found: dict[str, Any] = {f.name: {} if f.key else [] for f in schema.values() if f.key or f.many}
    place = 0
    while place < len(raw):
        tag, place = _varint(raw, place)
        field = schema.get(tag >> 3)
        if field is None:
            raise LuthierError(f"{message} has a field {tag >> 3}, which this server does not know.")
        value, place = _value(raw, place, tag & 7, message)
        _put(found, field, tag & 7, value, message)
    return found


def _put(found: dict[str, Any], field: Field, wire: int, value: Any, message: str) -> None:
    if field.key:
        key, read = _entry(value, field, message)
        found[field.name][key] = read
    elif field.many and field.kind == "int" and wire == BYTES:
        found[field.name] += _packed(value)
    else:
        read = _read(value, field, wire, message)
        if field.many:
            found[field.name].append(read)
        else:
            found[field.name] = read


def _entry(value: Any, field: Field, message: str) -> tuple[str, Any]:
    """One entry of a map; an absent value is the kind's zero."""
    if not isinstance(value, bytes):
        raise _damaged(message)
    key, place = "", 0
    read: Any = 0.0 if field.kind == "double" else decode(field.kind, b"")
    while place < len(value):
        tag, place = _varint(value, place)
        part, place = _value(value, place, tag & 7, message)
        if tag >> 3 == 1:
            key = _read(part, Field("key", "text"), tag & 7, message)
        elif tag >> 3 == 2:
            read = _read(part, field, tag & 7, message)
        else:
            raise _damaged(message)
    return key, read


def _read(value: Any, field: Field, wire: int, message: str) -> Any:
    wanted = {"int": VARINT, "double": EIGHT}.get(field.kind, BYTES)
    if wire != wanted:
        raise LuthierError(f"{message}.{field.name} is not sent as {field.kind}.")
    if field.kind == "int":
        return value - (1 << 64) if value >= 1 << 63 else value
    if field.kind == "double":
        return struct.unpack("<d", value)[0]
    if field.kind == "text":
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise LuthierError(f"{message}.{field.name} is not text.") from None
    return value if field.kind == "bytes" else decode(field.kind, value)


def _value(raw: bytes, place: int, wire: int, message: str) -> tuple[Any, int]:
    if wire == VARINT:
        return _varint(raw, place)
    length = {EIGHT: 8, 5: 4}.get(wire)
    if wire == BYTES:
        length, place = _varint(raw, place)
    if length is None or place + length > len(raw):
        raise _damaged(message)
    return raw[place : place + length], place + length


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(raw):
            break
        byte = raw[place]
        value |= (byte & 127) << shift
        place += 1
        if byte < 128:
            return value & (1 << 64) - 1, place
    raise _damaged("the body")


def _packed(raw: bytes) -> list[int]:
    found, place = [], 0
    while place < len(raw):
        value, place = _varint(raw, place)
        found.append(value - (1 << 64) if value >= 1 << 63 else value)
    return found


def _damaged(what: str) -> LuthierError:
    return LuthierError(f"{what} cannot be read as protobuf: it ends early, or is something else.")


# --- writing ---


def encode(message: str, values: Mapping[str, Any]) -> bytes:
    """Returns the bytes of a message; a value of None is left out, and so are zeros, as protobuf writes them."""
    schema = MESSAGES[message]
    return b"".join(_written(number, field, values.get(field.name)) for number, field in sorted(schema.items()))


def _written(number: int, field: Field, value: Any) -> bytes:
    if value is None:
        return b""
    if field.key:
        plain = Field(field.name, field.kind)
        entries = (_bytes(1, key.encode()) + _single(2, plain, each, True) for key, each in value.items())
        return b"".join(_bytes(number, entry) for entry in entries)
    if field.many and field.kind == "int":
        return _bytes(number, b"".join(map(_number, value))) if value else b""
    if field.many:
        return b"".join(_single(number, field, each, True) for each in value)
    return _single(number, field, value, False)


def _single(number: int, field: Field, value: Any, zeros: bool) -> bytes:
    if field.kind == "int":
        return _tag(number, VARINT) + _number(int(value)) if value or zeros else b""
    if field.kind == "double":
        return _tag(number, EIGHT) + struct.pack("<d", value)
    raw = value.encode() if field.kind == "text" else value if field.kind == "bytes" else encode(field.kind, value)
    return _bytes(number, raw) if raw or zeros or field.kind in MESSAGES else b""


def _bytes(number: int, raw: bytes) -> bytes:
    return _tag(number, BYTES) + _number(len(raw)) + raw


def _tag(number: int, wire: int) -> bytes:
    return _number(number << 3 | wire)


def _number(value: int) -> bytes:
    value &= (1 << 64) - 1
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    made.append(value)
    return bytes(made)


def joined(parts: Iterable[bytes]) -> tuple[bytes, list[int]]:
    """Returns parts behind each other, and where each begins and the last ends."""
    listed, offsets = list(parts), [0]
    for part in listed:
        offsets.append(offsets[-1] + len(part))
    return b"".join(listed), offsets
