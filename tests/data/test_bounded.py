"""Chat templates within bounds of time, steps and size; those in use are within them by far."""

from __future__ import annotations

import time

import pytest

from luthier.core.contracts.example import Example
from luthier.data import bounded, budget
from luthier.data.bad import BadRow
from luthier.data.bounded import TooMuch, check_bounds
from luthier.data.template import Template
from support.tiny import tokenizer
from support.tiny_tokenizers import TEMPLATES

TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "you"}]
COUNTED = "{% for i in range(COUNT) %}{% for j in range(50) %}{% endfor %}{% endfor %}"


@pytest.fixture
def small(monkeypatch):
    """Bounds that a harmless template passes soon."""
    monkeypatch.setattr(budget, "STEPS", 500)
    monkeypatch.setattr(budget, "CHARACTERS", 400)
    monkeypatch.setattr(budget, "WIDEST", 50)


NESTED = "{% set n = namespace(x='ab') %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
GROWN = {
    "turns": COUNTED.replace("COUNT", "20"),
    "calls": "{% macro f(x) %}{% if x %}{{ f(x - 1) }}{{ f(x - 1) }}{% endif %}{% endmacro %}{{ f(9) }}",
    "joined": "{% set n = namespace(t='ab') %}{% for i in range(9) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    "added": "{% set n = namespace(t='ab') %}{% for i in range(9) %}{% set n.t = n.t + n.t %}{% endfor %}",
    "multiplied": "{{ ('ab' * 300) | length }}",
    "listed": "{{ ([1] * 900) | length }}",
    "lists in lists": NESTED + "{{ n.x }}",
    "lists in lists by arguments": "{% set n = namespace(x='ab') %}{% macro f() %}{% set n.x = varargs %}{% endmacro %}"
    "{% for i in range(40) %}{% set _ = f(n.x, n.x) %}{% endfor %}",
    "objects in objects": NESTED.replace("[n.x, n.x]", "dict(a=n.x, b=n.x)") + "{{ n.x | string | length }}",
    "lists times lists": "{{ [[[1] * 30] * 30] * 30 }}",
    "a namespace in lists": "{% set n = namespace(x=1) %}{{ [n, n] | length }}",
    "a namespace": "{% set n = namespace(x=1) %}{{ n }}",
    "joined as it is made": "{{ range(50) | map('string') | join('bbbbbbbbbb') | length }}",
    "joined by a method": "{{ 'bbbbbbbbbb'.join(range(50) | map('string')) | length }}",
    "wrapped": "{{ ('a ' * 50) | wordwrap(9, wrapstring='b' * 50) | length }}",
    "indented by a text": "{{ ('a\n' * 50) | indent('b' * 50) | length }}",
    "translated": "{{ ('a' * 50).translate({97: 'b' * 50}) | length }}",
    "tabs": "{{ ('\t' * 50).expandtabs(49) | length }}",
    "JSON between": "{{ ([1] * 40) | tojson(separators=('b' * 50, ':')) | length }}",
    "formatted often": "{{ ('%(a)s' * 20) % {'a': 'b' * 50} }}",
    "formatted often by a filter": "{{ ('%s' * 20) | format('b' * 50) }}",
    "formatted often by a method": "{{ ('{0}' * 20).format('b' * 50) }}",
    "formatted to a width of an argument": "{{ '{:>{}}'.format('a', 10**9) }}",
    "formatted to one behind a key": "{{ '{0[}]:>{1}}'.format({'}': 'a'}, 10**9) }}",
    "formatted to one by %": "{{ '%s: %-*s' % ('a', 10**9, 'b') }}",
    "formatted to one by a filter": "{{ '%.*f' | format(10**9, 1.0) }}",
    "lists added up": "{{ [[1], [2]] | sum(start=[]) }}",
    "a power of ten": "{{ 1.5 | round(60, 'ceil') }}",
    "a coding": "{{ ('a' * 9).encode('punycode') }}",
    "macros within macros": "{% macro f(x) %}{% if x %}{{ f(x - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "written": "{% for i in range(100) %}{{ 'abcdefgh' }}{% endfor %}",
    "plain text": "{% for i in range(100) %}abcdefgh{% endfor %}",
    "centred": "{{ 'a' | center(60) }}",
    "justified": "{{ 'a'.ljust(60) }}",
    "indented": "{{ 'a' | indent(60) }}",
    "replaced": "{{ 'aaaaaaaaaaaaaaaaaaaaaaaaa' | replace('a', 'bbbbbbbbbbbbbbbbbbbbbbbbb') | length }}",
    "put between": "{{ range(50) | join('bbbbbbbbbb') | length }}",
    "formatted": "{{ '%9999d' % 1 }}",
    "formatted by a filter": "{{ '%9999d' | format(1) }}",
    "formatted by a method": "{{ '{:9999}'.format(1) }}",
    "a power": "{{ 2 ** 60 }}",
    "a product": "{{ 9999999999 * 9999999999 }}",
}


@pytest.mark.parametrize("case", GROWN)
def test_what_goes_beyond_the_bounds_is_refused(case, small):
    with pytest.raises(TooMuch, match=r"a template may"):
        check_bounds(GROWN[case], {"messages": TURNS})


@pytest.mark.parametrize("case", GROWN)
def test_the_usual_bounds_are_wide(case):
    if not case.startswith(("formatted", "a ", "lists in", "objects", "lists added", "macros")):
        check_bounds(GROWN[case], {"messages": TURNS})


ORDINARY = {
    "{{ '{}: {}'.format('user', 'hello') }}": "user: hello",
    "{{ '{role}: {content}'.format(**messages[0]) }}": "user: hello",
    "{{ '**{0}**: {{{1}}} ({2:>3}, 2024)'.format('user', 'hello', 1) }}": "**user**: {hello} (  1, 2024)",
    "{{ '%s: {%s}' % ('user', 'hello') }}": "user: {hello}",
    "{{ '**%s**: {%s}' | format('user', 'hello') }}": "**user**: {hello}",
}


@pytest.mark.parametrize("source", ORDINARY)
def test_ordinary_formats_are_within_the_bounds(source):
    check_bounds(source, {"messages": TURNS})
    assert tokenizer(source).apply_chat_template(TURNS, tokenize=False) == ORDINARY[source]


def test_a_slow_template_is_stopped_at_its_time():
    begun = time.monotonic()
    with pytest.raises(TooMuch, match="takes longer"):
        check_bounds(COUNTED.replace("COUNT", "15000"), {"messages": TURNS}, seconds=0.05)
    assert time.monotonic() - begun < 5


def test_a_row_is_refused_with_the_reason(small):
    made = tokenizer(GROWN["turns"])
    with pytest.raises(BadRow, match="the chat template is refused: it takes more turns"):
        Template.of(Example(row=1, messages=TURNS), made).render(TURNS)


@pytest.mark.parametrize("name", [name for name, source in TEMPLATES.items() if source])
def test_templates_in_use_render_alike_in_the_bounded_sandbox(name):
    """So that what it looks at is what transformers renders."""
    source = TEMPLATES[name]
    made = tokenizer(source)
    variables = {**made.special_tokens_map, "messages": TURNS, "add_generation_prompt": True}
    token = budget.left.set(budget.Budget.of(source, 60))
    try:
        mine = bounded._compiled(source).render(**variables)
    finally:
        budget.left.reset(token)
    assert mine == made.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)


def test_a_template_of_a_book_is_not_compiled():
    with pytest.raises(TooMuch, match=r"more than a template may \(131,072\)"):
        check_bounds("{{ 1 }}" * 20_000, {"messages": TURNS})
