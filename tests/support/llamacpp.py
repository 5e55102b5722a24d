"""llama.cpp itself, through the wheels of xllamacpp: the oracle of GGUF files."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

xllamacpp: Any = pytest.importorskip("xllamacpp")
KEPT: list[Any] = []
"""Servers for as long as the process lives: one that is dropped waits for its threads, once for ever."""


class Engine:
    """A GGUF model in llama.cpp, on one thread, its cache in float32; adapters act at strength 1."""

    def __init__(self, model: Path, adapter: Path | None = None) -> None:
        settings = xllamacpp.CommonParams()
        settings.model.path = str(model)
        settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = 512, 1, 0
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.warmup, settings.fit_params, settings.verbosity = False, False, 0
        settings.hostnames, settings.port = ["127.0.0.1"], 0
        if adapter is not None:
            settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        self.server = xllamacpp.Server(settings)
        KEPT.append(self.server)

    def log_probabilities(self, ids: list[int], rows: int) -> Tensor:
        """Of the token after `ids`, [rows]."""
        asked = {"prompt": ids, "max_tokens": 1, "n_probs": rows, "temperature": 0, "cache_prompt": False}
        said = self.server.handle_completions(asked)
        found = said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        assert len(found) == rows
        return torch.tensor([each["logprob"] for each in sorted(found, key=lambda e: e["id"])], dtype=torch.float64)

    def text(self, prompt: str, length: int) -> str:
        """What it writes greedily."""
        asked = {"prompt": prompt, "max_tokens": length, "temperature": 0, "cache_prompt": False}
        return self.server.handle_completions(asked)["choices"][0]["text"]

    def tokens(self, text: str, special: bool = False) -> list[int]:
        """The ids that it reads in a text."""
        body = json.dumps({"content": text, "add_special": special, "parse_special": True}).encode()
        request = urllib.request.Request(
            f"{self.server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["tokens"]
