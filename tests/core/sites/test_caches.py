"""A model is handed its cache, and a cache is found, under either of the names that releases of transformers have."""

from pathlib import Path

from torch import nn

import luthier
from luthier.core.sites.caches import cache_argument, cache_in, cache_name


class Newer(nn.Module):
    def forward(self, input_ids, cache=None):
        return {"logits": input_ids, "cache": cache}


class Older(nn.Module):
    def forward(self, input_ids, past_key_values=None):
        return {"logits": input_ids, "past_key_values": past_key_values}


def test_both_names_are_known():
    kept = object()
    for model in (Newer(), Older()):
        assert cache_in(model(0, **cache_argument(model, kept))) is kept
        assert cache_in(model(0)) is None
    assert cache_name(nn.Linear(1, 1)) is None


def test_no_other_module_asks_for_a_cache_by_name():
    """One that did would find none with the other releases, and act as if each pass were the first."""
    asks = ('get("past_key_values")', ".past_key_values", "past_key_values=", '"past_key_values":', "cache_params")
    root = Path(luthier.__file__).parent
    found = [p.name for p in root.rglob("*.py") if any(each in p.read_text(encoding="utf-8") for each in asks)]
    assert not found
