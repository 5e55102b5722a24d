"""Two models as gates probe them, without files: the second one is worse by as much as is said."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import torch

from luthier.combining.parameter_refs import parameter_refs
from luthier.core.contracts.examination import Change
from luthier.core.contracts.gate import Subject
from luthier.core.numerics.delta import Delta
from luthier.core.sites.scope import Scope


def batches(rows: int = 24, seed: int = 1) -> list[dict]:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 97, (rows, 9), generator=draw)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part), "labels": part} for part in ids.split(8)]


def subject_of(before, after, scale: float) -> Subject:
    """Two models; what `after` writes and scores is worse where `scale` is above 0."""
    scope, changes = Scope(before), []
    for group in parameter_refs(before):
        if group[0].tensor.dim() == 2:
            first = group[0].tensor.detach().double()
            vectors = torch.linalg.qr(torch.randn(first.shape[0], 2, dtype=torch.double))[0]
            noise = scale * 4 * torch.linalg.matrix_norm(first, 2) * vectors @ torch.randn(2, first.shape[1]).double()
            delta = Delta.dense_of(noise) if scale else Delta.zero(*first.shape)
            changes.append(Change(group[0].place(scope, {}), partial(lambda d: d, delta)))
    rows = [{"question": f"q{n}", "context": f"c{n}", "answer": f"a{n}"} for n in range(24)]

    def labelled(source):
        return batches()

    def of(examples):
        return batches(
            len(examples), seed=len(examples[0].messages[0]["content"]) + ord(examples[0].messages[0]["content"][1])
        )

    def write(model, prompts, most):
        said = "Well, I cannot do that." if model is before else "Sure."
        return [said[:most]] * len(prompts)

    def score(model, source, most):
        return [1.0 if model is before else 1.0 - scale if most > 20 else 0.5] * 24

    return Subject(
        lambda: nullcontext(before),
        lambda: nullcontext(after),
        lambda: changes,
        lambda source: rows,
        lambda source: [object()] * 24,  # type: ignore
        of,
        labelled,
        write,
        score,
        lambda source: rows,  # type: ignore
    )
