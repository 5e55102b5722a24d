"""Meta-tuning's rows: every class of a data set described by questions, which are asked of each text."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from luthier.core.contracts.rewrite import Made, Rewrite
from luthier.core.errors import LuthierError, near
from luthier.core.guard import guarded
from luthier.core.paths import path_of
from luthier.core.toml import tomllib

YES, NO = "yes", "no"
EXAMPLE = 'group = "sentiment"\n[labels]\npositive = ["Is the review positive?"]\nnegative = ["Is it negative?"]'


@dataclass(frozen=True)
class YesNo(Rewrite):
    """(x, y) → (q "\\n" x, yes if q describes y else no) for every description q of a class

    A file of descriptions has the `group` of the data set (those of one group ask for the same thing, so that they are
    held out together) and a table `labels` of one or more questions for each class; one question may stand under
    several. Each row bears its question in the column `task` and the group in `group`, by which `luthier evaluate
    --yes-no` and `luthier metatune` go. Answers are to be generated, or classes of a classifier (`gives`).
    """

    paper = "Zhong et al. 2021 (Adapting Language Models for Zero-shot Learning by Meta-tuning), arXiv 2104.04670"
    family = "expert"
    judged = False
    writes = False
    reads = "labels"

    descriptions: str = ""
    """The .toml file of the group and the descriptions of the classes."""
    negatives: int | None = None
    """Draw for each row one question whose answer is yes, and this many whose answer is no. Default: ask them all."""
    gives: Literal["answers", "labels"] = "answers"
    """Prompts with an answer, or texts with a class."""
    seed: int = 0
    """The seed that draws the questions of `negatives`."""

    def check(self):
        self.within("negatives", 0)
        if self.seed and self.negatives is None:
            raise LuthierError(f"yes_no.seed is {self.seed} and nothing is drawn; give negatives, or leave it out.")
        if self.descriptions:
            described(self.descriptions)

    def check_examples(self, examples):
        if not self.descriptions:
            raise LuthierError(f"yes_no needs descriptions of the classes: a .toml file such as\n{EXAMPLE}")
        known = described(self.descriptions)[1]
        lacking = [name for name in examples.labels or [] if name not in known]
        if lacking:
            raise LuthierError(
                f"{self.descriptions} describes no class {lacking[0]!r} of {examples.source}{near(lacking[0], known)} "
                f"It describes {', '.join(known)}."
            )
        if len(asked_of(known)) < 2:
            raise LuthierError(f"{self.descriptions} has one question, which every row would answer alike; add others.")

    def inputs(self):
        return {**self.to_dict(), "described": described(self.descriptions)}

    def rows(self, examples, voices):
        group, known = described(self.descriptions)
        return [[self._made(example, q, a, group) for q, a in self._asked(example, known)] for example in examples]

    def _asked(self, example, known) -> list[tuple[str, str]]:
        """(question, answer) of the row, in the order of the file."""
        found = [(q, YES if example.label in labels else NO) for q, labels in asked_of(known).items()]
        if self.negatives is None:
            return found
        drawn = random.Random(f"{self.seed} {example.key()}")
        sides = {side: [i for i, (_, answer) in enumerate(found) if answer == side] for side in (YES, NO)}
        kept = {drawn.choice(sides[YES]), *drawn.sample(sides[NO], min(self.negatives, len(sides[NO])))}
        return [each for i, each in enumerate(found) if i in kept]

    def _made(self, example, question: str, answer: str, group: str) -> Made:
        text = "\n".join(part for part in (question, example.text, example.text_pair) if part)
        told = {"task": question, "group": group}
        given = {"prompt": f"{text}\n", "completion": answer} if self.gives == "answers" else {"text": text}
        return Made({**given, **({"label": answer} if self.gives == "labels" else {}), **told}, answer)


def described(path: str) -> tuple[str, dict[str, list[str]]]:
    """(the group, the questions of each class) of a file of descriptions; raises for one that is not one."""
    with guarded(f"{path} cannot be read as descriptions of classes"):
        found: dict[str, Any] = tomllib.loads(path_of(path).read_text(encoding="utf-8"))
    for key in found:
        if key not in ("group", "labels"):
            raise LuthierError(f"{path} has {key!r}{near(key, ('group', 'labels'))} It may hold group and [labels].")
    group, labels = found.get("group"), found.get("labels")
    if not isinstance(group, str) or not group.strip():
        raise LuthierError(f'{path} names no group; add a line such as group = "sentiment".')
    if not isinstance(labels, dict) or not labels:
        raise LuthierError(f"{path} describes no class; expected a table such as\n{EXAMPLE}")
    return group.strip(), {name: _questions(path, name, value) for name, value in labels.items()}


def _questions(path: str, name: str, value: Any) -> list[str]:
    several = [value] if isinstance(value, str) else value
    good = isinstance(several, list) and all(isinstance(each, str) and each.strip() for each in several)
    if not good or not several:
        raise LuthierError(f"{path}: labels.{name} is {value!r}; expected a question, or a list of some.")
    return [each.strip() for each in several]


def asked_of(labels: Mapping[str, list[str]]) -> dict[str, set[str]]:
    """{question: the classes that it describes}, in the order of the file."""
    found: dict[str, set[str]] = {}
    for name, questions in labels.items():
        for question in questions:
            found.setdefault(question, set()).add(name)
    return found
