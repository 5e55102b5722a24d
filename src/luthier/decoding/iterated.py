"""Iterated decoding: one of the models takes a step on every text, so that what was said is no longer new."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luthier.core.contracts.decoding import Decoding
from luthier.core.errors import LuthierError
from luthier.decoding.decode import Answer, answers
from luthier.decoding.members import Member, Members

if TYPE_CHECKING:
    import torch

    from luthier.engine.settings import Sampling
    from luthier.evaluating.generate import Messages


def refuse_rounds(by: Decoding, rounds: int, lr: float, sampling: Sampling, draft: int = 0) -> None:
    """Raises `LuthierError` where rounds would not differ, or none of the models learns."""
    if rounds < 1:
        raise LuthierError(f"rounds is {rounds}; expected at least 1.")
    if rounds == 1:
        return
    if by.learns is None:
        raise LuthierError(f"no model of {by.name()} learns from what is said, so it has one round.")
    if not lr > 0:
        raise LuthierError(f"step_lr is {lr}; expected a number above 0.")
    if draft:
        raise LuthierError("rounds and a draft do not go together: the drafting model would not know what was learned.")
    if not sampling.temperature:
        raise LuthierError("rounds draw texts; give a temperature above 0, as each round starts from the same prompt.")


def iterated(
    by: Decoding,
    members: Members,
    prompts: Sequence[str | Messages],
    sampling: Sampling,
    *,
    rounds: int,
    lr: float = 1e-4,
    batch: int = 8,
    watch: Callable[[Sequence[list[int]]], Any] = iter,
) -> list[list[Answer]]:
    """Returns the answers to all prompts in each round.

    After a round, the model of the role `by.learns` takes one step of AdamW on each answer in turn, the mean loss of
    its tokens behind the prompt; the optimiser lives through all rounds. Round r draws by the seed plus r. The model
    must not be shared with another role, and its weights are put back at the end. Raises `LuthierError` otherwise.
    """
    refuse_rounds(by, rounds, lr, sampling)
    learner = _learner(by, members)
    found: list[list[Answer]] = []
    with _learning(learner, lr) as optimiser:
        for turn in range(rounds):
            drawn = replace(sampling, seed=sampling.seed + turn)
            found.append(answers(by, members, prompts, drawn, batch=batch, watch=watch))
            if turn + 1 < rounds:
                for prompt, answer in zip(prompts, found[-1], strict=True):
                    _step(learner, optimiser, prompt, answer.text)
    return found


def _learner(by: Decoding, members: Members) -> Member:
    assert by.learns is not None
    (learner,) = members[by.learns]
    others = [each for role, given in members.items() if role != by.learns for each in given]
    if any(each.model is learner.model for each in others):
        raise LuthierError(f"the model of {by.learns} learns, and is another role's as well; give it one of its own.")
    if learner.adapter is not None:
        raise LuthierError(f"the model of {by.learns} learns as a whole; give it without an adapter.")
    return learner


@contextmanager
def _learning(learner: Member, lr: float) -> Iterator[torch.optim.Optimizer]:
    """An optimiser of all floating parameters, whose values and flags are put back."""
    import torch

    chosen = [parameter for parameter in learner.model.parameters() if parameter.is_floating_point()]
    kept = [(parameter, parameter.detach().clone(), parameter.requires_grad) for parameter in chosen]
    try:
        for parameter in chosen:
            parameter.requires_grad_(True)
        yield torch.optim.AdamW(chosen, lr=lr, weight_decay=0.0)
    finally:
        with torch.no_grad():
            for parameter, value, wanted in kept:
                parameter.grad = None
                parameter.copy_(value)
                parameter.requires_grad_(wanted)


def _step(learner: Member, optimiser: torch.optim.Optimizer, prompt: str | Messages, text: str) -> None:
    """One step on the tokens of a text behind its prompt; an empty one teaches nothing."""
    import torch

    from luthier.evaluating.generate import tokenised

    model, words = learner.model, learner.tokenizer
    start = tokenised(model, words, [prompt], template=learner.template)[0]
    said = words(text, add_special_tokens=False)["input_ids"]
    if not said:
        return
    ids = torch.tensor([start + said], device=model.device)
    labels = ids.clone()
    labels[:, : len(start)] = -100
    optimiser.zero_grad(set_to_none=True)
    with torch.enable_grad():
        logits = model(input_ids=ids).logits[:, :-1].float()
        torch.nn.functional.cross_entropy(logits[0], labels[0, 1:]).backward()
    optimiser.step()
