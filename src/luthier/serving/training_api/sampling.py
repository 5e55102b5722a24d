"""Samples: what `asample` asks, decoded by the engine beside everybody else's, and the log-probabilities of prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.core.adapters.attach import find_state
from luthier.core.adapters.control import rows
from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.engine.engine import Engine
from luthier.engine.request import Chunk, Request, Ticket, Token
from luthier.engine.shaping import Shaping
from luthier.serving.training_api.asks import text_tokens
from luthier.serving.training_api.bodies import SampleBody
from luthier.serving.training_api.tensors import json_tensor
from luthier.serving.training_api.wire import encode

EMPTY = -99999.0
"""The log-probability of a cell of a top-k table that holds no token."""
CHUNK = 256
"""Positions whose distributions are made at a time."""
UNBOUNDED = 2**12
"""Tokens of an answer without a bound, by a model that states none."""


@dataclass(frozen=True)
class Sample:
    """A request, checked."""

    prompt: tuple[int, ...]
    body: SampleBody
    targets: np.ndarray | None
    """Token ids [T - 1, K] whose log-probabilities are wanted at each place of the prompt, -1 for none."""

    @property
    def reads(self) -> bool:
        """Whether log-probabilities of the prompt are wanted."""
        return bool(self.body.prompt_logprobs or self.body.topk_prompt_logprobs or self.targets is not None)


@guarded("the request cannot be read")
def sample_of(body: SampleBody, words: int, longest: int | None) -> Sample:
    """Returns a request that is right; raises `LuthierError` for one that is not."""
    prompt = tuple(text_tokens("prompt", body.prompt))
    if not prompt or any(not 0 <= token < words for token in prompt):
        raise LuthierError(f"prompt: its chunks hold no tokens, or some that are none of the model's {words}.")
    if longest is not None and len(prompt) >= longest:
        raise LuthierError(f"prompt: it has {len(prompt)} tokens; with its answer it may have {longest}.")
    last = body.prompt_logprobs_last_n
    if last is not None and not (body.prompt_logprobs and last < len(prompt)):
        raise LuthierError("prompt_logprobs_last_n: it goes with prompt_logprobs, and is less than the prompt is long.")
    return Sample(prompt, body, _targets(body, prompt, words))


def _targets(body: SampleBody, prompt: Sequence[int], words: int) -> np.ndarray | None:
    if body.target_prompt_logprobs is None:
        return None
    if body.target_prompt_logprobs.get("sparse_crow_indices") is not None:
        raise LuthierError("target_prompt_logprobs: sparse rows are not taken here; send them dense, with -1.")
    values = json_tensor("target_prompt_logprobs", body.target_prompt_logprobs).values
    if values.ndim != 2 or len(values) != len(prompt) - 1 or values.dtype.kind != "i":
        raise LuthierError(f"target_prompt_logprobs: expected whole numbers of the shape [{len(prompt) - 1}, K].")
    if (values < -1).any() or (values >= words).any():
        raise LuthierError(f"target_prompt_logprobs: a token is none of the model's {words}.")
    return values


@dataclass
class Flight:
    """A sample under way: an answer for each of its sequences, which the engine's thread fills in."""

    request_id: str
    adapter: str | None
    ended: Callable[[Flight], None]
    """Called once all have ended; on the engine's thread."""
    answers: list[list[Token]] = field(default_factory=list)
    ends: list[Chunk | None] = field(default_factory=list)
    tickets: list[Ticket] = field(default_factory=list)
    prompt: dict[str, Any] = field(default_factory=dict)
    """The fields of the response that are about the prompt."""

    def deliver(self, index: int) -> Callable[[Chunk], None]:
        """Returns what takes the pieces of one answer."""

        def take(chunk: Chunk) -> None:
            self.answers[index] += chunk.tokens
            if chunk.finish is not None:
                self.ends[index] = chunk
                if None not in self.ends:
                    self.ended(self)

        return take

    def result(self, k: int) -> bytes:
        """Returns the response; raises `LuthierError` where an answer failed or was cancelled."""
        for end in self.ends:
            if end is None or end.finish not in ("stop", "length"):
                raise LuthierError("the sample was cancelled." if end is None or not end.error else end.error)
        return encode("SampleResponse", {
            "sequences": [self._sequence(tokens, end, k) for tokens, end in zip(self.answers, self.ends, strict=True)],
            **self.prompt,
        })  # fmt: skip

    def _sequence(self, tokens: Sequence[Token], end: Chunk | None, k: int) -> dict[str, Any]:
        tops = [[(each, value) for each, _, value in token.top] for token in tokens]
        return {
            "stop_reason": 0 if end is not None and end.finish == "stop" else 1,
            "tokens": np.asarray([token.id for token in tokens], "<i4").tobytes(),
            "logprobs": np.asarray([token.logprob for token in tokens], "<f4").tobytes(),
            "topk_sampled_logprobs": table(tops, k) if k else None,
        }


def start(engine: Engine, sample: Sample, adapter: str | None, flight: Flight) -> None:
    """Submits a sample; raises `Busy` while the engine has no room for it."""
    body, wanted = sample.body, sample.body.sampling_params
    stop = wanted.stop
    listed = [stop] if isinstance(stop, str) else list(stop or [])
    texts = tuple(each for each in listed if isinstance(each, str))
    tokens = tuple(each for each in listed if isinstance(each, int))
    requests = [
        Request(
            prompt=sample.prompt,
            adapter=adapter,
            max_tokens=wanted.max_tokens or engine.max_length or UNBOUNDED,
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            shaping=Shaping(top_k=max(0, wanted.top_k)),
            seed=None if wanted.seed is None else (wanted.seed + index) % 2**63,
            stop=texts,
            stop_tokens=tokens,
            own_ends=stop is None,
            logprobs=body.topk_sample_logprobs,
        )
        for index in range(body.num_samples)
    ]
    flight.answers = [[] for _ in requests]
    flight.ends = [None] * len(requests)
    flight.tickets = engine.submit_all(requests, [flight.deliver(index) for index in range(len(requests))])


# --- prompts ---


def read_prompt(engine: Engine, sample: Sample, adapter: str | None) -> dict[str, Any]:
    """Returns the fields of a response that are about the prompt: log p of each of its tokens, NaN for the first."""
    if not sample.reads:
        return {}
    found: list[dict[str, Any]] = []
    engine.between(lambda: found.append(_read(engine.model, sample, adapter)))
    return found[0]


@torch.inference_mode()
def _read(model: Any, sample: Sample, adapter: str | None) -> dict[str, Any]:
    body, ids = sample.body, torch.tensor([sample.prompt], device=model.device)
    mask = torch.ones_like(ids)
    if find_state(model) is None:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0]
    else:
        with rows(model, [adapter]):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0]
    count = len(sample.prompt)
    first = 1 if body.prompt_logprobs_last_n is None else count - body.prompt_logprobs_last_n
    own = np.full(count, math.nan, "<f4")
    tops: list[list[tuple[int, float]]] = [[] for _ in range(count)]
    scored = np.zeros((0, 0) if sample.targets is None else sample.targets.shape, "<f4")
    for begin in range(0, count - 1, CHUNK):
        logs = logits[begin : min(begin + CHUNK, count - 1)].float().log_softmax(-1)
        places = range(begin + 1, begin + 1 + len(logs))  # the tokens that these positions predict
        own[places.start : places.stop] = logs.gather(1, ids[0, places.start : places.stop, None])[:, 0].cpu().numpy()
        if k := body.topk_prompt_logprobs:
            for place, each in zip(places, _best(logs, k), strict=True):
                tops[place] = each
        if sample.targets is not None:
            asked = torch.from_numpy(sample.targets[begin : begin + len(logs)].copy()).to(logs.device)
            values = logs.gather(1, asked.clamp(min=0)) * asked.ge(0)
            scored[begin : begin + len(logs)] = values.cpu().numpy()
    own[:first] = math.nan
    tops[:first] = [[] for _ in range(first)]
    told: dict[str, Any] = {}
    if body.prompt_logprobs:
        told["prompt_logprobs"] = own.tobytes()
    if k := body.topk_prompt_logprobs:
        told["topk_prompt_logprobs"] = table(tops, k)
    if sample.targets is not None:
        told["target_prompt_logprobs"] = {"dense": scored.tobytes(), "dtype": 1, "shape": list(scored.shape)}
    return told


def _best(logs: Tensor, k: int) -> list[list[tuple[int, float]]]:
    values, index = logs.topk(min(k, logs.shape[1]))
    return [list(zip(*each, strict=True)) for each in zip(index.tolist(), values.tolist(), strict=True)]


def table(lines: Sequence[Sequence[tuple[int, float]]], k: int) -> dict[str, Any]:
    """Returns top-k alternatives of each place as the protocol's table of k columns."""
    ids, values = np.zeros((len(lines), k), "<i4"), np.full((len(lines), k), EMPTY, "<f4")
    for line, alternatives in enumerate(lines):
        for column, (token, value) in enumerate(alternatives[:k]):
            ids[line, column], values[line, column] = token, value
    return {"token_ids": ids.tobytes(), "logprobs": values.tobytes(), "k": k, "length": len(lines)}
