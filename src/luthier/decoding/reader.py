"""A member reading a batch, with a cache of its own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from luthier.core.adapters.attach import find_state
from luthier.core.adapters.control import disabled, enable, prompt
from luthier.core.contracts.decoding import Decoding
from luthier.core.errors import LuthierError
from luthier.core.sites.caches import cache_argument, cache_in
from luthier.decoding.members import Member


class Reader:
    """Reads what it has not read yet of a text that grows. `cached=False` reads all of it each time; `rewinds` keeps
    what `crop` needs where attention has a window."""

    def __init__(self, member: Member, prompt: int, *, cached: bool = True, rewinds: bool = False) -> None:
        self.member, self.cached = member, cached
        self.seen, self._prompt = 0, prompt
        self._cache: Any = recording(member.model) if rewinds and cached else None
        self._takes = inspect.signature(member.model.forward).parameters

    def __call__(self, ids: Tensor, mask: Tensor, last: int = 1) -> Tensor:
        """The logits behind each of the `last` columns, [batch, last, vocabulary], in float32 at least.

        `ids` and `mask` are the whole text, [batch, columns], padded on the left.
        """
        model = self.member.model
        start = self.seen if self.cached else 0
        mask = mask.to(model.device)
        options: dict[str, Any] = {**cache_argument(model, self._cache), "use_cache": self.cached}
        if "position_ids" in self._takes:
            options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, start:]
        if "logits_to_keep" in self._takes:
            options["logits_to_keep"] = last
        with acting(self.member, self._prompt):
            out = model(input_ids=ids[:, start:].to(model.device), attention_mask=mask, **options)
        if self.cached:
            self.seen, self._cache = ids.shape[1], cache_in(out)
        logits = out.logits[:, -last:]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def crop(self, length: int) -> None:
        """Forgets what stands behind column `length`."""
        if not self.cached or self.seen <= length:
            return
        try:
            self._cache.crop(length - self.seen)
        except (RuntimeError, ValueError, NotImplementedError, AttributeError) as error:
            raise LuthierError(
                f"the cache of {type(self.member.model).__name__} cannot be taken back ({error}), so tokens cannot be "
                "drafted ahead; decode without a draft."
            ) from None
        self.seen = length


def recording(model: Any) -> Any:
    """A cache whose sliding windows keep what they have passed until it is cropped."""
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=model.config.get_text_config(decoder=True))
    with suppress(AttributeError):  # a transformers that cannot record: `crop` tells, should it come to that
        for layer, slides in zip(cache.layers, cache.is_sliding, strict=True):
            if slides:
                layer.activate_past_recording()
    return cache


@contextmanager
def acting(member: Member, prompt_columns: int) -> Iterator[None]:
    """The member's adapter alone acts on its model while the context lasts, and knows where the prompt ends."""
    if find_state(member.model) is None:
        yield
        return
    with disabled(member.model), prompt(member.model, prompt_columns):
        if member.adapter is not None:
            enable(member.model, member.adapter)
        yield


class Ensemble:
    """The members of a decoding reading one batch together."""

    def __init__(
        self,
        by: Decoding,
        members: Mapping[str, Sequence[Member]],
        prompt: int,
        width: int,
        *,
        cached: bool = True,
        rewinds: bool = False,
    ) -> None:
        self.by, self.width = by, width
        self.readers = {
            role: [Reader(member, prompt, cached=cached, rewinds=rewinds) for member in given]
            for role, given in members.items()
        }

    def logits(self, ids: Tensor, mask: Tensor, last: int = 1) -> dict[str, Tensor]:
        """By role, as `Decoding.scores` takes them; the columns of a row stand one behind the other as rows."""
        found = {}
        for role, readers in self.readers.items():
            heard = [r(ids, mask, last)[..., : self.width].flatten(0, 1).to(ids.device) for r in readers]
            found[role] = torch.stack(heard) if role in self.by.several else heard[0]
        return found

    def scores(self, ids: Tensor, mask: Tensor, last: int = 1) -> Tensor:
        """Returns the scores behind each of the `last` columns, [batch, last, vocabulary]."""
        return self.by.scores(self.logits(ids, mask, last)).unflatten(0, (len(ids), last))

    def crop(self, length: int) -> None:
        """Every member forgets what stands behind column `length`."""
        for reader in (r for readers in self.readers.values() for r in readers):
            reader.crop(length)
