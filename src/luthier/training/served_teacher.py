"""A teacher behind OpenAI's API, which tells the log-probabilities of an answer's tokens."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from luthier.core.contracts.objective import Batch
from luthier.core.errors import LuthierError
from luthier.data.rewriting.api import Server

PROBE = "The teacher and the student read the same tokens, 1 to 9."
"""A text by whose tokens the vocabularies are compared."""
MARKS = str.maketrans("Ġ▁", "  ")
"""How some servers write a space."""


class ServedTeacher:
    """`http://host:port/v1#model`, asked for the log-probabilities of prompts that are token ids (`echo`).

    Called with a batch, it returns log p of each next token, [rows, T - 1], 0 where there is none. Raises
    `LuthierError` where the server does not answer, or has another number of tokens.
    """

    def __init__(self, address: str) -> None:
        self.server = Server(address)

    def __call__(self, batch: Batch) -> Tensor:
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        rows = [own[real].tolist() for own, real in zip(ids, mask, strict=True)]
        found = torch.zeros(len(rows), ids.shape[1] - 1)
        with ThreadPoolExecutor(self.server.at_once) as pool:
            for row, told in enumerate(pool.map(self._told, rows)):
                if None in (values := told["token_logprobs"][1:]):
                    raise LuthierError(f"{self.server.url} tells some tokens no log-probability, so it cannot teach.")
                found[row, mask[row].nonzero()[:-1, 0].cpu()] = torch.tensor(values)
        return found.to(ids.device)

    def _told(self, row: list[int]) -> dict[str, Any]:
        asked = {"prompt": row, "max_tokens": 0, "echo": True, "logprobs": 1}
        sent = self.server.sent("completions", asked)
        told = None if sent is None else sent["choices"][0].get("logprobs")
        if not told:
            why = "it sends none" if sent is not None else max(self.server.why, key=self.server.why.__getitem__)
            raise LuthierError(
                f"the teacher {self.server.address} does not tell the log-probabilities of a prompt ({why}). What was "
                "saved is kept; go on when it does (resume)."
            )
        if len(told["token_logprobs"]) != len(row):
            raise LuthierError(
                f"the teacher {self.server.address} tells {len(told['token_logprobs'])} log-probabilities for "
                f"{len(row)} tokens: it reads them otherwise."
            )
        return told

    def check(self, tokenizer: Any) -> None:
        """Raises `LuthierError` unless the server answers, and knows the tokens of a text as `tokenizer` does."""
        ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        own = [tokenizer.decode([each]).strip() for each in ids]
        other = [str(text).translate(MARKS).strip() for text in self._told(ids)["tokens"]]
        if own != other:
            raise LuthierError(
                f"the teacher {self.server.address} has other tokens than the student ({other[:4]} for {own[:4]}); "
                "take a model of the same family."
            )
