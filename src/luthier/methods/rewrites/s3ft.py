"""Selective self-to-supervised fine-tuning: the model's own answer where it is right, the gold one where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.core.contracts.example import Example, Message
from luthier.core.contracts.rewrite import Made, Rewrite, answer_of, answered, asked, question_of

OWN, PARAPHRASE, GOLD = "own", "paraphrase", "gold"
ASK = (
    "Here is a question and its right answer. Write the same answer in your own words: nothing of it may be changed, "
    "left out or added. Reply with the answer alone.\n\nQuestion:\n{question}\n\nAnswer:\n{answer}"
)
"""The request for a paraphrase; its wording is ours, as the paper shows none for every task."""


@dataclass(frozen=True)
class S3FT(Rewrite):
    """y = M₀(x) if the judge finds it right; else M₀'s paraphrase of the gold answer if that is right; else gold

    M₀ is the model before fine-tuning, which answers greedily. What it learns is then as near to what it says already
    as the judge allows: the mean loss of its targets is at most that of the gold answers, and it forgets less. A judge
    that does not answer counts as one that says no, and the row says so.
    """

    paper = "Gupta et al. 2025 (Selective Self-to-Supervised Fine-Tuning), arXiv 2502.08130"
    family = "self-improved"

    paraphrase: bool = True
    """Try a paraphrase of the gold answer before the answer itself."""

    def rows(self, examples, voices):
        found: dict[int, Made] = {}
        silent: dict[int, str] = {}
        own = voices.write([asked(example) for example in examples])
        self._keep_right(examples, dict(enumerate(own)), OWN, voices, found, silent)
        left = [place for place in range(len(examples)) if place not in found] if self.paraphrase else []
        requests = [request(examples[place]) for place in left]
        others = dict(zip(left, voices.write(requests), strict=True)) if left else {}
        self._keep_right(examples, others, PARAPHRASE, voices, found, silent)
        return [[found.get(place) or gold(example, silent.get(place))] for place, example in enumerate(examples)]

    def _keep_right(self, examples: Sequence[Example], texts, origin, voices, found, silent) -> None:
        """Keeps the answers that are right, and why the judge said nothing of others."""
        tried = {place: text for place, text in texts.items() if text and text.strip()}
        verdicts = voices.judge([(examples[place], text) for place, text in tried.items()])
        for (place, text), verdict in zip(tried.items(), verdicts, strict=True):
            if verdict.right:
                found[place] = Made(answered(examples[place], text), origin)
            elif verdict.right is None:
                silent[place] = verdict.why


def request(example: Example) -> list[Message]:
    """The conversation that asks for a paraphrase."""
    text = ASK.format(question=question_of(example), answer=answer_of(example))
    return [{"role": "user", "content": text}]


def gold(example: Example, silent: str | None) -> Made:
    """The row as it was."""
    notes = {} if silent is None else {"unjudged": silent}
    return Made(answered(example, answer_of(example)), GOLD, notes)
