"""The chat page in a real browser, against a real server with a fake engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.serving.http.guard import LOOPBACK, Guard
from support import browsing
from support.browsing import is_dark, look
from support.served import serving

pytestmark = browsing.needed
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> &amp;"


class Page:
    """The page, as a visitor sees and uses it."""

    def __init__(self, driver: Any, address: str, patience: float = 10) -> None:
        self.driver, self.address, self.patience = driver, address, patience

    def open(self, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        look(self.driver, f"{self.address}/health", width, height, dark)
        self.js("sessionStorage.clear(); localStorage.clear()")
        self.driver.get(self.address)
        return self

    def js(self, script: str, *words: Any) -> Any:
        return self.driver.execute_script(script, *words)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(each => each.textContent)"
        return self.driver.execute_script(script, selector)  # at once: a page may draw itself anew meanwhile

    def shown(self, name: str) -> bool:
        return self.driver.find_element("id", name).is_displayed()

    def click(self, name: str) -> None:
        self.driver.find_element("id", name).click()

    def type(self, name: str, text: str) -> None:
        field = self.driver.find_element("id", name)
        field.clear()
        field.send_keys(text)

    def choose(self, *models: str) -> None:
        """Exactly these, by clicks."""
        self.until(lambda: bool(self.all(".chip")))
        for chip in self.all(".chip"):
            box = chip.find_element("tag name", "input")
            if box.is_selected() != (box.get_attribute("value") in models):
                chip.click()

    def ask(self, text: str) -> None:
        """Types, sends, and waits for every answer."""
        before = len(self.all(".turn"))
        self.until(lambda: self.shown("ask"))
        self.type("prompt", text)
        self.click("send")
        self.until(lambda: len(self.all(".turn")) == before + 1 and self.shown("send"))

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + self.patience
        while not condition():
            assert time.monotonic() < end, self.driver.find_element("tag name", "body").text
            time.sleep(0.02)

    def complaints(self) -> list[str]:
        return browsing.complaints(self.driver)


def shoot(address: str, path: Path, models: tuple[str, ...], asked: tuple[str, ...], height: int = 760) -> None:
    """A screenshot of a chat with the models of a running server; makes the one in docs/images."""
    with browsing.started() as driver:
        page = Page(driver, address, patience=120).open(1280, height)
        page.choose(*models)
        for each in asked:
            page.ask(each)
        page.js("scrollTo(0, 0)")
        driver.save_screenshot(str(path))


@pytest.fixture
def page(browser, engine) -> Iterator[Page]:
    with serving(engine) as address:
        browsing.complaints(browser)  # of the page before
        yield Page(browser, address)


def test_models_answer_side_by_side(page, engine):
    page.open()
    page.choose("base", "two")
    page.js("document.querySelector('details').open = true")
    page.type("most", "8")
    page.ask("hello")
    assert page.texts(".asked") == ["hello"]
    assert page.texts(".answer h2") == ["base", "two"] and page.texts(".answer .text") == ["I am bas", "I am two"]
    assert all(text.startswith("8 tokens") and "cut at max tokens" in text for text in page.texts(".figures"))
    left, right = (each.rect for each in page.all(".answer"))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    assert {request.adapter for request in engine.requests} == {None, "two"}
    assert all(request.temperature == 0 and request.max_tokens == 8 for request in engine.requests)
    assert page.complaints() == []


def test_every_model_remembers_its_own_answers(page, engine):
    page.open()
    page.choose("one")
    page.js("document.getElementById('system').value = 'be'")
    engine.say = lambda request: "yes"
    page.ask("a")
    page.choose("one", "two")
    page.ask("b")
    said = {r.adapter: engine.tokenizer.decode(r.prompt) for r in engine.requests[1:]}
    assert said == {
        "one": "<s>be</s><u>a</s><a>yes</s><u>b</s><a>",
        "two": "<s>be</s><u>b</s><a>",
    }
    page.click("fresh")
    assert page.all(".turn") == [] and page.shown("empty")
    page.ask("c")
    assert engine.tokenizer.decode(engine.requests[-1].prompt) == "<s>be</s><u>c</s><a>"


def test_answers_stream_and_stop(page, engine):
    engine.pace, engine.say = 0.02, lambda request: "x" * 390
    page.open()
    page.choose("one")
    page.type("prompt", "go")
    page.click("send")
    lengths: list[int] = []
    while len(lengths) < 4:
        page.until(lambda: len(page.texts(".text")[0]) > (lengths[-1] if lengths else 0))
        lengths.append(len(page.texts(".text")[0]))
    assert not page.shown("send") and page.all(".answer")[0].get_attribute("aria-busy") == "true"
    page.click("stop")
    page.until(lambda: page.shown("send"))
    assert page.texts(".figures") == ["stopped"] and lengths[-1] < 390
    page.until(lambda: engine.cancelled == {0} and not engine.live)
    assert page.complaints() == []


def test_errors_are_shown_where_they_belong(page, engine):
    engine.say = lambda request: "fail" if request.adapter == "one" else "fine"
    page.open()
    page.choose("one", "two")
    page.ask("hello")
    assert page.texts(".answer .bad") == ["the model made no sense"] and page.texts(".text") == ["", "fine"]
    page.choose("two")
    engine.names.remove("two")
    page.ask("hello")
    assert "there is no model 'two'" in page.texts(".answer .bad")[-1]
    page.choose()
    page.type("prompt", "hello")
    page.click("send")
    assert page.texts("#trouble") == ["Choose at least one model."] and len(page.all(".turn")) == 2


def test_what_models_say_is_text(page, engine):
    engine.names = [HOSTILE, "two"]
    engine.say = lambda request: HOSTILE
    page.open()
    page.choose(HOSTILE)
    page.ask(HOSTILE)
    for selector in (".asked", ".answer h2", ".text"):
        assert page.texts(selector) == [HOSTILE]
    assert page.driver.title == "luthier serve"
    assert page.js("return [document.scripts.length, document.images.length]") == [1, 0]
    assert page.complaints() == []  # the policy had nothing to refuse


def test_the_policy_refuses_what_slips_through(page):
    page.open()
    page.js(
        "const s = document.createElement('script'); s.textContent = \"document.title = 'owned'\";"
        "document.body.append(s)"
    )
    page.js("const i = document.createElement('img'); i.src = 'http://127.0.0.1:9/'; document.body.append(i)")
    told: list[str] = []

    def both() -> bool:
        told.extend(page.complaints())
        return sum("Content Security Policy" in each for each in told) >= 2

    page.until(both)
    assert page.driver.title == "luthier serve"


def test_screenshot(page, tmp_path):
    shoot(page.address, tmp_path / "serve.png", ("base", "one"), ("hello",), 480)
    assert (tmp_path / "serve.png").read_bytes().startswith(b"\x89PNG")


def test_keyboard(page, engine):
    from selenium.webdriver.common.keys import Keys

    page.open()
    page.choose("one")
    field = page.driver.find_element("id", "prompt")
    field.send_keys("a", Keys.SHIFT, Keys.ENTER, Keys.NULL, "b", Keys.ENTER)
    page.until(lambda: bool(page.texts(".figures")))
    assert page.texts(".asked") == ["a\nb"]


@pytest.mark.parametrize("dark", [False, True])
def test_theme(page, dark):
    page.open(dark=dark)
    assert is_dark(page.driver) is dark
    page.click("theme")
    assert is_dark(page.driver) is not dark
    page.driver.refresh()
    assert is_dark(page.driver) is not dark  # the choice is kept


@pytest.mark.parametrize("width", [320, 375, 1280])
def test_no_sideways_scroll(page, engine, width):
    engine.names = ["one", "long-" * 12 + "name"]
    engine.say = lambda request: "word" * 80
    page.open(width, 700)
    page.js("document.querySelector('details').open = true")
    page.choose("base", engine.names[1])
    page.ask("w" * 300)
    assert page.js("return document.documentElement.scrollWidth") <= width
    send = page.driver.find_element("id", "send").rect
    assert send["x"] + send["width"] <= width


def test_a_key_is_asked_for(browser, engine):
    with serving(engine, Guard("secret", LOOPBACK)) as address:
        page = Page(browser, address).open()
        page.until(lambda: page.shown("unlock"))
        assert not page.shown("ask")
        page.type("key", "wrong\n")
        page.until(lambda: page.texts("#locked") == ["That is not the key."])
        page.type("key", "secret\n")
        page.until(lambda: page.shown("ask"))
        page.choose("one")
        page.ask("hello")
        assert page.texts(".text")[0].startswith("I am one.")
        page.driver.refresh()
        page.until(lambda: page.shown("ask"))  # kept for the tab
