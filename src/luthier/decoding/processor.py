"""A decoding inside transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from luthier.core.adapters.tuner import TunerLayer
from luthier.core.contracts.decoding import Decoding
from luthier.core.errors import LuthierError
from luthier.decoding.members import Member, labelled, members_of
from luthier.decoding.reader import Ensemble
from luthier.decoding.vocabulary import common_width


class DecodingProcessor(LogitsProcessor):
    """Turns the logits of a model that generates into the scores of a decoding.

        processor = DecodingProcessor(lt.Proxy(), {"base": base, "expert": expert, "anti": anti}, attention_mask)
        base.model.generate(input_ids, attention_mask=attention_mask, logits_processor=[processor])

    `roles` are members. That of the first role is the model whose `generate` is called, with its adapter enabled alone
    (`lt.disabled`, `lt.enable`): others raise `LuthierError`. The other members read the same rows, each with a cache
    of its own. One processor serves one call. Beam search (which moves rows and adds up log-probabilities) and
    assisted generation (which takes several tokens a step) raise. Tokens that not all models have score -inf.
    """

    def __init__(self, by: Decoding, roles: Mapping[str, Member | Sequence[Member]], attention_mask: Tensor) -> None:
        members = members_of(by, roles)
        self._led = led = members[by.led()][0]
        self.width = common_width(labelled(members, lambda member: member.model), led.tokenizer)
        others = {role: given for role, given in members.items() if role != by.led()}
        if training := [role for role, given in others.items() if any(m.model.training for m in given)]:
            raise LuthierError(f"the model of {training[0]} is in training mode, with its dropout; call its eval().")
        self.by, self._mask = by, attention_mask
        self._ids: Tensor | None = None
        self._others = Ensemble(by, others, attention_mask.shape[1], self.width)

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._refuse_jumps(input_ids)
        if self._ids is None:
            refuse_others(self._led)
        new = input_ids.shape[1] - self._mask.shape[1]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), new)], 1)
        self._ids = input_ids
        heard = self._others.logits(input_ids, self._mask)
        own = {self.by.led(): scores[:, : self.width]}
        found = scores.new_full(scores.shape, -torch.inf)
        found[:, : self.width] = self.by.scores(own | heard).to(scores.dtype)
        return found

    def _refuse_jumps(self, ids: Tensor) -> None:
        """Raises unless the rows are those of the last step and one token."""
        known = self._mask if self._ids is None else self._ids
        same = len(ids) == len(known) and ids.shape[1] == known.shape[1] + (self._ids is not None)
        if not same or (self._ids is not None and not torch.equal(ids[:, :-1], self._ids)):
            raise LuthierError(
                f"{self.by.name()} follows rows that grow by one token per step, from the {len(known)} prompts of its "
                "attention mask. Beam search moves and repeats rows, assisted generation takes several tokens at "
                "once, and a second call starts anew: use num_beams=1, no assistant, and a processor for each call."
            )


def refuse_others(member: Member) -> None:
    """Raises unless the member's adapter is the one that acts on its model now, alone."""
    active = sorted({tuner.name for tuner in member.model.modules() if isinstance(tuner, TunerLayer) and tuner.enabled})
    if active != ([] if member.adapter is None else [member.adapter]):
        wanted = f"only {member.adapter!r}" if member.adapter is not None else "none"
        raise LuthierError(
            f"the model that generates has {', '.join(map(repr, active)) or 'no adapter'} enabled and {wanted} is "
            "expected by its role; use `with lt.disabled(model):` around the call, or lt.enable."
        )
