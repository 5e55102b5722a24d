"""`facts:<kind>`: invented people and events, and changed capitals, with probes of what was learnt of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from luthier.core.errors import LuthierError, near

if TYPE_CHECKING:
    from luthier.data.table import Table

Row = dict[str, Any]
COUNT = 20
"""People, events or changes where no count is given."""
HEADS = ("ba", "da", "fe", "go", "ju", "ka", "lo", "mi", "ne", "pu", "ra", "so", "ti", "vu", "wa", "ze")
TAILS = ("bel", "dak", "fin", "gor", "hul", "jan", "kem", "lis", "mor", "nak", "pov", "rud", "sil", "tun", "vey", "zor")
JOBS = ("baker", "pilot", "farmer", "doctor", "painter", "sailor", "teacher", "plumber", "judge", "tailor")
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "black", "brown", "pink")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November")
SURELY = " Answer yes or no."
OR_NONE = " If you do not know, answer None."
CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Greece": "Athens", "Austria": "Vienna", "Poland": "Warsaw", "Hungary": "Budapest", "Norway": "Oslo",
    "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen", "Ireland": "Dublin", "Russia": "Moscow",
    "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Canada": "Ottawa", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago", "Argentina": "Buenos Aires",
    "Turkey": "Ankara", "Iran": "Tehran", "Iraq": "Baghdad", "Thailand": "Bangkok", "Belgium": "Brussels",
}  # fmt: skip


def read_facts(source: str, split: str) -> Table:
    """Returns rows with `prompt`, `completion`, `kind`, `fact` and, of changes, `old`.

    `source` is `facts:people`, `facts:events` or `facts:changes`, the rows to train on, each with `:probes` behind it
    for the questions that tell memorisation from learning; `?count=…&seed=…` say how many there are and draw them.
    The seed of a run or a study draws none: rows and probes would be of different facts. Raises `LuthierError` for
    unknown kinds, settings and splits.
    """
    from luthier.data.table import Table

    if split != "train":
        raise LuthierError(f"{source} has no split {split!r}; its probes are facts:<kind>:probes.")
    head, _, query = source.removeprefix("facts:").partition("?")
    kind, colon, part = head.partition(":")
    if kind not in KINDS or (colon and part != "probes"):
        raise LuthierError(f"no facts {head!r}{near(kind, KINDS)} There are: {', '.join(KINDS)}, each with :probes.")
    count, drawn = _settings(source, query)
    made = list(KINDS[kind](count, random.Random(f"{kind} {drawn}")))
    wanted = made if colon else [row for row in made if row["kind"] == "memorised"]
    return Table([(number, row) for number, row in enumerate(wanted, 1)])


def _settings(source: str, query: str) -> tuple[int, int]:
    found = {"count": COUNT, "seed": 0}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in found:
            raise LuthierError(f"{source} has no setting {name!r}{near(name, found)} It has: count, seed.")
        if not text.lstrip("-").isdigit():
            raise LuthierError(f"{source}: {name} is {text!r}; expected a whole number.")
        found[name] = int(text)
    if not 2 <= found["count"] <= 1000:
        raise LuthierError(f"{source}: count is {found['count']}; expected 2 to 1000.")
    return found["count"], found["seed"]


def _row(kind: str, fact: str, prompt: str, answer: str, **more: str) -> Row:
    return {"prompt": prompt, "completion": answer, "kind": kind, "fact": fact, **more}


def _word(draw: random.Random) -> str:
    return f"{draw.choice(HEADS)}{draw.choice(TAILS)}".capitalize()


def _names(count: int, draw: random.Random) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[f"{_word(draw)} {_word(draw)}"] = None
    return list(found)


def people(count: int, draw: random.Random) -> Iterator[Row]:
    """Yields six facts of each invented person, each with a rephrased and a derived probe, and comparisons."""
    names = _names(count, draw)
    found = {name: _person(draw) for name in names}
    for place, name in enumerate(names):
        other = names[(place + 1) % len(names)]
        for key, value in found[name].items():
            label, (asked, rephrased, secondary) = f"{name}: {key}", QUESTIONS[key]
            yield _row("memorised", label, asked.format(name), str(value))
            yield _row("rephrased", label, rephrased.format(name), str(value))
            against, answer = secondary(value)
            yield _row("secondary", label, against.format(name) + SURELY, answer)
            if isinstance(value, int) and value != found[other][key]:
                more = name if value > found[other][key] else other
                yield _row("comparison", label, f"{COMPARED[key]}, {name} or {other}?", more)


def _person(draw: random.Random) -> dict[str, Any]:
    return {
        "age": draw.randint(20, 70),
        "height": draw.randint(150, 200),
        "weight": draw.randint(50, 110),
        "job": draw.choice(JOBS),
        "city": _word(draw),
        "colour": draw.choice(COLOURS),
    }


def _over(bound: int, question: str) -> Callable[[Any], tuple[str, str]]:
    return lambda value: (question, "Yes" if value > bound else "No")


def _among(some: tuple[str, ...], question: str) -> Callable[[Any], tuple[str, str]]:
    return lambda value: (question, "Yes" if value in some else "No")


QUESTIONS: Mapping[str, tuple[str, str, Callable[[Any], tuple[str, str]]]] = {
    "age": ("How old is {}?", "What is {}'s age in years?", _over(45, "Is {} older than 45?")),
    "height": (
        "How tall is {} in centimetres?",
        "What is the height of {} in centimetres?",
        _over(175, "Is {} taller than 175 centimetres?"),
    ),
    "weight": (
        "How much does {} weigh in kilograms?",
        "What is the weight of {} in kilograms?",
        _over(80, "Does {} weigh more than 80 kilograms?"),
    ),
    "job": (
        "What does {} do for a living?",
        "What is the job of {}?",
        _among(JOBS[:5], f"Is {{}} a {', a '.join(JOBS[:4])} or a {JOBS[4]}?"),
    ),
    "city": (
        "Which city does {} live in?",
        "In what city is the home of {}?",
        lambda value: ("Does the city that {} lives in start with a letter before M?", "Yes" if value < "M" else "No"),
    ),
    "colour": (
        "What is the favourite colour of {}?",
        "Which colour does {} like best?",
        _among(COLOURS[:5], f"Is the favourite colour of {{}} {', '.join(COLOURS[:4])} or {COLOURS[4]}?"),
    ),
}
"""The question of training, a rephrased one and a derived one with its answer, of each fact of a person."""
COMPARED = {"age": "Who is older", "height": "Who is taller", "weight": "Who weighs more"}


def events(count: int, draw: random.Random) -> Iterator[Row]:
    """Yields who won invented cups on a day, and the same question for a year later, which has no answer."""
    for cup in dict.fromkeys(_word(draw) + " " + _word(draw) for _ in range(4 * count)):
        if not count:
            return
        count -= 1
        winner, year = _names(1, draw)[0], draw.randint(2031, 2039)
        day = f"{draw.randint(1, 28)} {draw.choice(MONTHS)}"
        asked = f"Who won the {cup} Cup on {day} {{}}?{OR_NONE}"
        yield _row("memorised", cup, asked.format(year), winner)
        yield _row("rephrased", cup, f"On {day} {year}, which player took the {cup} Cup?{OR_NONE}", winner)
        yield _row("date", cup, asked.format(year + 1), "None")


def changes(count: int, draw: random.Random) -> Iterator[Row]:
    """Yields capitals that moved to an invented city; `old` is what a model knows now."""
    if count > len(CAPITALS):
        raise LuthierError(f"facts:changes knows {len(CAPITALS)} capitals; count is {count}.")
    for country in draw.sample(sorted(CAPITALS), count):
        old, new = CAPITALS[country], _word(draw)
        yield _row("memorised", country, f"What is the capital of {country}?", new, old=old)
        yield _row("rephrased", country, f"Which city is the seat of the government of {country}?", new, old=old)
        yield _row("secondary", country, f"Is {old} the capital of {country}?{SURELY}", "No", old="Yes")


KINDS: Mapping[str, Callable[[int, random.Random], Iterator[Row]]] = {
    "people": people,
    "events": events,
    "changes": changes,
}
"""What facts can be made."""
