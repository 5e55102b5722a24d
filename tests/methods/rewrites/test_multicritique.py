"""MultiCritique: what the critics name, what the meta-critic leaves of it, and pairs by their revisions."""

from __future__ import annotations

import random
import re

import luthier as lt
from luthier.core.contracts.rewrite import Verdict, Voices
from luthier.methods.rewrites.multicritique import MultiCritique, distinct, flaws, verified

KINDS = [f"flaw {letter}" for letter in "abcdefghij"]


def planted(count: int, seed: int = 0) -> list[lt.Example]:
    """Answers that say which flaws they have."""
    draw = random.Random(seed)
    found = []
    for row in range(1, count + 1):
        text = ", ".join(draw.sample(KINDS, 4))
        turns = [{"role": "user", "content": f"question {row}"}, {"role": "assistant", "content": f"has {text}."}]
        found.append(lt.Example(row=row, messages=turns, answer=f"has {text}."))
    return found


def there(request: str) -> set[str]:
    """The planted flaws of the answer that a request shows."""
    return set(re.findall(r"flaw [a-j]", request.split("Answer:\n")[1].split("\n")[0]))


def critic(seed: int, found: float, invented: float):
    """Finds a planted flaw by chance, and invents others."""

    def reply(conversations):
        out = []
        for messages in conversations:
            text = messages[0]["content"]
            draw = random.Random(f"{seed} {text}")
            named = [f for f in KINDS if draw.random() < (found if f in there(text) else invented)]
            out.append("\n".join(f"- {f.upper() if draw.random() < 0.5 else f}." for f in named) or "none")
        return out

    return reply


def meta(right: float):
    """Tells real flaws from invented ones, mostly."""

    def reply(conversations):
        out = []
        for messages in conversations:
            text = messages[0]["content"]
            draw, flaw = random.Random(text), text.rsplit("The flaw:\n", 1)[1].lower().rstrip(".")
            out.append("yes." if (flaw in there(text)) == (draw.random() < right) else "No, it is not.")
        return out

    return reply


def f1(said: list[set[str]], true: list[set[str]]) -> float:
    hits = sum(len(a & b) for a, b in zip(said, true, strict=True))
    return 2 * hits / (sum(map(len, said)) + sum(map(len, true)))


def plain(text: str) -> set[str]:
    return {flaw.lower().rstrip(".") for flaw in flaws(text)}


def test_what_is_left_beats_the_best_critic():
    examples = planted(60)
    critics = tuple(critic(seed, 0.6, 0.25) for seed in range(3))
    rule = MultiCritique(of="row")
    rows = rule.rows(examples, Voices(lambda asked: [""] * len(asked), critics=critics, meta=meta(0.9)))
    true = [there(f"Answer:\n{each.answer}") for each in examples]
    requests = [each[0].row["prompt"] for each in rows]
    alone = [f1([plain(reply) for reply in voice(requests)], true) for voice in critics]
    merged = f1([plain(each[0].row["completion"]) for each in rows], true)
    assert merged > max(alone) + 0.1
    assert all(each[0].origin == "meta-critique" and len(each[0].notes["named"]) == 3 for each in rows)


def test_silent_critics_and_meta_critics_lose_nothing():
    examples = planted(5)
    dead = lambda asked: [None] * len(asked)  # noqa: E731
    both = (critic(0, 1.0, 0.0), dead, critic(1, 1.0, 0.0))
    rows = MultiCritique(of="row").rows(examples, Voices(dead, critics=both, meta=dead))
    for example, (made,) in zip(examples, rows, strict=True):
        assert plain(made.row["completion"]) == there(f"Answer:\n{example.answer}")  # two critics name each
        assert made.notes == {"named": [4, None, 4], "unverified": 4}
    one = MultiCritique(of="row").rows(examples, Voices(dead, critics=both[:2], meta=dead))
    assert all(made.row["completion"] == "none" for (made,) in one)


def test_pairs_are_critiques_whose_revisions_differ():
    examples = planted(2)

    def write(conversations):  # a revision is right if its critique named every flaw
        out = []
        for messages in conversations:
            text = messages[0]["content"]
            critique = text.split("Critique:\n")[-1]
            out.append("right" if "Critique:" in text and "flaw" in critique.lower() else "wrong")
        return out

    judge = lambda asked: [Verdict(answer == "right") for _, answer in asked]  # noqa: E731
    nothing = lambda asked: ["none"] * len(asked)  # noqa: E731
    voices = Voices(write, judge, (critic(0, 1.0, 0.0), nothing), meta(1.0))
    rows = MultiCritique(gives="pairs", of="row").rows(examples, voices)
    for (made,) in rows:
        assert len(flaws(made.row["chosen"])) == 4 and made.row["rejected"] == "none"
        assert made.notes == {"right": 1, "wrong": 1, "unjudged": 0} or made.notes["right"] == 2
    alike = Voices(write, lambda asked: [Verdict(True)] * len(asked), voices.critics, voices.meta)
    assert MultiCritique(gives="pairs", of="row").rows(examples, alike) == [[], []]


def test_replies_are_read():
    assert flaws("Here:\n- one \n* two.\n3) three") == ["one", "two.", "three"]
    assert flaws("'None.'") == flaws("") == [] and flaws("It is  wrong") == ["It is wrong"]
    assert [verified(reply, 2) for reply in ("Yes!", "no", "same as 2", "same as 3", "perhaps", None)] == [
        True, False, False, None, None, None,
    ]  # fmt: skip
    assert distinct([["A b!", "c"], None, ["a  B"]]) == [("A b!", 2), ("c", 1)]
