"""Critiques by several critics, verified and merged: rows to learn criticism from, or pairs of critiques."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.core.contracts.example import Message
from luthier.core.contracts.rewrite import Made, Rewrite, Voice, answer_of, asked, question_of

CRITIC = (
    "Name every flaw of this answer, one a line, each line opening with a dash. Name nothing that is right. Reply "
    "'none' if there is no flaw.\n\nQuestion:\n{question}\n\nAnswer:\n{answer}"
)
VERIFY = (
    "Somebody says that this answer has a flaw. Is it really there? Reply 'yes' or 'no', or 'same as N' where it is "
    "the flaw number N in other words.\n\nQuestion:\n{question}\n\nAnswer:\n{answer}\n\nFlaws named before:\n{before}\n"
    "\nThe flaw:\n{flaw}"
)
REVISE = (
    "Answer the question again and mend what the critique names. Reply with the answer alone.\n\nQuestion:\n{question}"
    "\n\nFirst answer:\n{answer}\n\nCritique:\n{critique}"
)
"""The requests; their wording is ours."""
NONE = "none"
FLAW = re.compile(r"\s*(?:[-*•]|\d+[.)])\s+(.*\S)")
SAME = re.compile(r"same as\s+(\d+)")


@dataclass(frozen=True)
class MultiCritique(Rewrite):
    """C = {c in ∪ᵢ Cᵢ : the meta-critic finds c real and new}; a pair is two critiques whose revisions differ in right

    Cᵢ are the flaws that critic i names in an answer. Those in the same words are one; the meta-critic is asked of each
    in turn, with those before it. `sft` gives the rows (question and answer → C). `pairs` has the model revise its
    answer by C and by each Cᵢ, and the judge look at the revisions: a critique that led to a right one is preferred to
    one that did not, C before the others. A flaw that the meta-critic says nothing of stays where two critics name it.
    """

    paper = "Lan et al. 2024 (Training Language Models to Critique with Multi-agent Feedback), arXiv 2410.15287"
    family = "distilled"
    criticised = True

    gives: Literal["sft", "pairs"] = "sft"
    """Rows of critiques, or pairs of a better and a worse one, for preferences."""
    of: Literal["own", "row"] = "own"
    """Whose answer is criticised: the model's own, or the one that the row holds."""

    def rows(self, examples, voices):
        answers = voices.write([asked(e) for e in examples]) if self.of == "own" else [answer_of(e) for e in examples]
        texts = [{"question": question_of(e), "answer": a or ""} for e, a in zip(examples, answers, strict=True)]
        requests = [ask(CRITIC, **text) for text in texts]
        said = [critic(requests) for critic in voices.critics]
        named = [[None if reply is None else flaws(reply) for reply in replies] for replies in zip(*said, strict=True)]
        assert voices.meta is not None  # it is `criticised`
        merged = merge(texts, named, voices.meta)
        if self.gives == "sft":
            return [
                [Made(learned(request, kept), "meta-critique", noted(each, silent))]
                for request, (kept, silent), each in zip(requests, merged, named, strict=True)
            ]
        return self._pairs(examples, texts, requests, [kept for kept, _ in merged], named, voices)

    def _pairs(self, examples, texts, requests, merged, named, voices) -> list[list[Made]]:
        """The pair of each answer, if the revisions tell two critiques apart."""
        said = [[merged[i], *(each for each in named[i] if each is not None)] for i in range(len(examples))]
        critiques = [list(dict.fromkeys(map(written, each))) for each in said]
        flat = [(place, critique) for place, each in enumerate(critiques) for critique in each]
        revised = voices.write([ask(REVISE, critique=critique, **texts[place]) for place, critique in flat])
        verdicts = voices.judge([(examples[at], text or "") for (at, _), text in zip(flat, revised, strict=True)])
        found: list[list[Made]] = []
        for place, request in enumerate(requests):
            own = [(c, v) for (at, c), v in zip(flat, verdicts, strict=True) if at == place]
            right, wrong = ([c for c, v in own if v.right is wanted] for wanted in (True, False))
            notes = {"right": len(right), "wrong": len(wrong), "unjudged": len(own) - len(right) - len(wrong)}
            pair = {"prompt": request, "chosen": right[0], "rejected": wrong[-1]} if right and wrong else None
            found.append([Made(pair, "revisions", notes)] if pair else [])
        return found


def ask(template: str, **values: str) -> list[Message]:
    """A request as a conversation."""
    return [{"role": "user", "content": template.format(**values)}]


def flaws(reply: str) -> list[str]:
    """The flaws that a reply names, a line each; a reply without such lines names itself, 'none' nothing."""
    lines = [found[1] for line in reply.splitlines() if (found := FLAW.match(line))]
    plain = reply.strip()
    return lines or ([] if plain.strip("'\".").casefold() in (NONE, "") else [" ".join(plain.split())])


def merge(
    texts: Sequence[dict[str, str]], named: Sequence[Sequence[list[str] | None]], meta: Voice
) -> list[tuple[list[str], int]]:
    """(the flaws that are real and new, how many the meta-critic said nothing of) of each answer.

    The meta-critic is asked of the first flaw of all answers at once, then of the second, for it sees the first.
    """
    lists = [distinct(each) for each in named]
    kept: list[list[str]] = [[] for _ in texts]
    silent = [0] * len(texts)
    for turn in range(max(map(len, lists), default=0)):
        places = [place for place, each in enumerate(lists) if turn < len(each)]
        asked_of = [ask(VERIFY, before=numbered(kept[p]), flaw=lists[p][turn][0], **texts[p]) for p in places]
        for place, reply in zip(places, meta(asked_of), strict=True):
            flaw, votes = lists[place][turn]
            verdict = verified(reply, len(kept[place]))
            silent[place] += verdict is None
            if verdict or (verdict is None and votes > 1):
                kept[place].append(flaw)
    return list(zip(kept, silent, strict=True))


def distinct(named: Sequence[list[str] | None]) -> list[tuple[str, int]]:
    """The flaws in other words, with how many critics name each."""
    found: dict[str, list[str]] = {}
    for each in named:
        for key, flaw in {plain(flaw): flaw for flaw in reversed(each or [])}.items():
            found.setdefault(key, []).append(flaw)
    ordered = [plain(flaw) for each in named for flaw in each or []]
    return [(found[key][0], len(found[key])) for key in dict.fromkeys(ordered)]


def numbered(kept: Sequence[str]) -> str:
    return "\n".join(f"{number}. {each}" for number, each in enumerate(kept, 1)) or NONE


def verified(reply: str | None, before: int) -> bool | None:
    """What the meta-critic says of a flaw: real and new, or not; None where it says neither."""
    said = (reply or "").strip().casefold().lstrip("'\"*")
    if found := SAME.match(said):
        return False if 1 <= int(found[1]) <= before else None
    return True if said.startswith("yes") else False if said.startswith("no") else None


def plain(flaw: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", flaw.casefold()).split())


def written(found: Sequence[str]) -> str:
    """A critique as critics write it."""
    return "\n".join(f"- {flaw}" for flaw in found) or NONE


def learned(request: list[Message], kept: Sequence[str]) -> dict:
    """The row that teaches a critique."""
    return {"prompt": request, "completion": written(kept)}


def noted(named: Sequence[list[str] | None], silent: int) -> dict:
    """How many flaws each critic named (None: it said nothing), and how many the meta-critic said nothing of."""
    counts = {"named": [None if each is None else len(each) for each in named]}
    return counts | ({"unverified": silent} if silent else {})
