"""The studio in a real browser, through whole small runs: looked at, launched, stopped, resumed, compared, exported."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import luthier as lt
from serving.test_page import Page
from support import browsing, fresh
from support.browsing import is_dark, look
from support.seeing import save_llava, write_digits
from support.tiny import TEMPLATE, save_model, sums, write_rows

pytestmark = browsing.needed
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


@contextmanager
def studio(folder: Path, *words: str) -> Iterator[str]:
    """The address of `luthier studio` over a folder, as a user starts it; it and what it starts are forks."""
    line = [fresh.python(), "-m", "luthier", "studio", str(folder), "--runs", str(folder / "runs"), "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*line, *words], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            found = re.search(r"http://[\d.:]+", said)
            assert found, said
            yield found[0]
        finally:
            process.send_signal(2)
            process.wait(60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("desk") / "desk"
    save_model(made / "tiny-llama", "llama", TEMPLATE)
    write_rows(made / "sums.jsonl", sums(60))
    write_rows(made / "hostile.jsonl", [{"prompt": f"{HOSTILE}{i}", "completion": "b"} for i in range(8)])
    write_rows(made / "bad.jsonl", [{"question": "1", "reply": "2"}])
    return made


@pytest.fixture(scope="module")
def address(folder) -> Iterator[str]:
    with studio(folder) as found:
        yield found


class Desk(Page):
    """The studio's page, as a visitor uses it."""

    def open(self, width: int = 1280, height: int = 900, dark: bool = False) -> Desk:
        look(self.driver, f"{self.address}/health", width, height, dark)
        self.js("sessionStorage.clear(); localStorage.clear()")
        self.driver.get(self.address)
        self.until(lambda: self.shown("plan") and bool(self.texts("#source")[0]))
        return self

    def set(self, name: str, value: str) -> None:
        """Chooses or types, and tells the page so."""
        script = "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        for kind in ("input", "change"):
            script += f"e.dispatchEvent(new Event('{kind}', {{bubbles: true}}));"
        self.js(script, name, value)

    def plan(self, data: str = "desk/sums.jsonl", method: str = "lora", **settings: str) -> None:
        self.set("model", "desk/tiny-llama")
        self.set("data", data)
        self.set("method", method)
        self.until(lambda: bool(self.all("#settings input")) and method in self.js("return plan.name.value"))
        for name, value in settings.items():
            self.set(name.replace("__", "-"), value)

    def looked(self) -> None:
        self.click("look")
        self.until(lambda: self.shown("seen") or bool(self.texts("#trouble")[0]))

    def started(self, name: str) -> None:
        self.set("name", name)
        self.click("start")
        self.until(lambda: self.shown("detail") and self.texts("#detail-name") == [name])

    def state(self, wanted: str) -> None:
        self.until(lambda: self.texts("#detail-state") == [wanted] or "failed" in self.texts("#detail-state"))
        assert self.texts("#detail-state") == [wanted], self.texts("#detail-trouble") + self.texts("#tail")


@pytest.fixture
def desk(browser, address) -> Desk:
    browsing.complaints(browser)  # of the page before
    return Desk(browser, address, patience=120)


def test_a_look_tells_what_a_run_would_cost_and_learn(desk, folder):
    desk.open()
    desk.plan(settings__rank="4", training__steps="12")
    assert desk.texts("#equation") == ["W' = W + s B A"] and "2106.09685" in desk.texts("#source")[0]
    assert not desk.driver.find_element("id", "start").is_enabled()
    desk.looked()
    price = dict(zip(desk.texts("#price dt"), desk.texts("#price dd"), strict=True))
    # lora of rank 4 on 3 blocks of q, o (32 to 32), k, v (32 to 16), gate, up, down (32 and 48): 4 (in + out) each
    wanted = 3 * 4 * (2 * 64 + 2 * 48 + 3 * 80)
    assert price["Trainable"].startswith(f"{wanted:,}") and price["Steps"].startswith("12")
    assert dict(zip(desk.texts("#mapped dt"), desk.texts("#mapped dd"), strict=True)) == {
        "prompt": "prompt", "completion": "completion"}  # fmt: skip
    rows = {f"{r['prompt']}{r['completion']}" for r in sums(60)}
    learned = "".join(desk.texts("#tokens .tokens:first-of-type mark")).replace("</s>", "")
    assert learned and any(row.endswith(f"={learned}") for row in rows)
    assert desk.driver.find_element("id", "start").is_enabled() and not (folder / "runs" / "lora-1").exists()
    desk.set("training-steps", "13")
    assert not desk.driver.find_element("id", "start").is_enabled()  # the price was another run's
    assert desk.complaints() == []


def test_what_is_wrong_is_said_before_a_run(desk):
    desk.open()
    desk.plan(data="desk/bad.jsonl")
    desk.looked()
    assert "question, reply" in desk.texts("#trouble")[0] and not desk.shown("seen")
    assert not desk.driver.find_element("id", "start").is_enabled()


def test_a_run_is_launched_watched_stopped_and_resumed(desk, folder):
    desk.open()
    desk.plan(training__steps="400", training__batch="2", training__save_every="20")
    desk.looked()
    desk.started("first")
    desk.until(lambda: any((folder / "runs" / "first" / "checkpoints").glob("step-*")))
    desk.until(lambda: bool(desk.all("#chart polyline")))
    desk.click("stop")
    desk.state("stopped")
    record = json.loads((folder / "runs" / "first" / "run.json").read_text())
    assert record["command"].startswith("luthier train ") and desk.texts("#command") == [record["command"]]
    before = (folder / "runs" / "first" / "metrics.jsonl").read_text().count("\n")
    assert 5 <= before < 400
    desk.click("resume")
    desk.state("finished")
    lines = [json.loads(line) for line in (folder / "runs" / "first" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["step"] for line in lines if "loss" in line]
    assert losses == list(range(1, 401)) and json.loads((folder / "runs" / "first" / "run.json").read_text())["resumed"]
    assert desk.complaints() == []


def test_runs_are_tried_exported_compared_and_talked_to(desk, folder):
    for name, method in (("second", "lora"), ("third", "loreft")):  # as in a terminal
        out = str(folder / "runs" / name)
        model, rows = str(folder / "tiny-llama"), str(folder / "sums.jsonl")
        lt.train(model, rows, out=out, method=method, steps=4, eval_every=2, progress=False, overwrite=True)
    desk.open()
    desk.js("document.querySelector('[data-part=runs]').click()")
    desk.until(lambda: {"second", "third"} <= set(desk.texts("#rows th button")))
    desk.js("document.querySelectorAll('#rows button').forEach(b => b.textContent === 'third' && b.click())")
    desk.until(lambda: desk.texts("#detail-name") == ["third"])
    desk.click("try")
    desk.until(lambda: desk.shown("tried"))
    assert len(desk.all("#tried-rows .shown")) == 6 and "completion" in desk.texts("#tried-rows dt")
    desk.js("document.querySelectorAll('#rows button').forEach(b => b.textContent === 'second' && b.click())")
    desk.until(lambda: desk.texts("#detail-name") == ["second"])
    desk.click("export")
    desk.until(lambda: (folder / "runs" / "exports" / "second-peft" / "adapter_config.json").is_file())
    for name in ("second", "third"):
        desk.js(f"document.querySelector('#rows input[value={name}]').click()")
    desk.click("compare")
    desk.until(lambda: desk.shown("compared"))
    assert len(desk.all("#overlay polyline")) == 2 and "method" in desk.texts("#differing tbody th")
    desk.js("document.querySelector('#rows input[value=third]').click()")
    desk.click("talk")
    desk.until(lambda: "/chat/" in desk.driver.current_url and bool(desk.all(".chip")))
    assert [each.strip() for each in desk.texts(".chip span")] == ["tiny-llama", "second"]
    desk.js("document.querySelector('details').open = true")
    desk.type("most", "4")
    desk.ask("1+1=")
    assert desk.texts(".answer h2") == ["tiny-llama", "second"] and all("token" in f for f in desk.texts(".figures"))
    desk.driver.find_element("css selector", ".mark a").click()
    desk.until(lambda: desk.driver.title == "luthier studio")
    assert desk.complaints() == []


def test_rows_with_pictures_are_seen_and_talked_about(browser, tmp_path):
    """Beside their tokens before the start, and in the chat with what was trained on them."""
    made = tmp_path / "desk"
    model, rows = save_llava(made / "tiny-llava"), write_digits(made / "digits", 12)
    out = str(made / "runs" / "seen")
    lt.train(str(model), str(rows), out=out, method="lora", steps=1, batch=2, eval_fraction=0.0, progress=False)
    with studio(made) as found:
        desk = Desk(browser, found, patience=120).open()
        desk.set("model", "desk/tiny-llava")
        desk.set("data", "desk/digits/rows.jsonl")
        desk.until(lambda: bool(desk.all("#settings input")))
        desk.looked()
        assert desk.texts("#trouble") == [""]
        shown = desk.js("return [...document.querySelectorAll('#tokens img')].map(e => [e.alt, e.naturalWidth, e.src])")
        assert len(shown) == 3 and all(name.endswith(".png") and width == 16 for name, width, _ in shown)
        assert all(url.startswith("data:image/png") for *_, url in shown) and desk.texts("#tokens mark")
        desk.js("document.querySelector('[data-part=runs]').click()")
        desk.until(lambda: "seen" in desk.texts("#rows th button"))
        desk.js("document.querySelector('#rows input[value=seen]').click()")
        desk.click("talk")
        desk.until(lambda: "/chat/" in desk.driver.current_url and desk.shown("attach"))
        desk.js("document.querySelector('details').open = true")
        desk.type("most", "3")
        for name in ("3.png", "4.png"):
            desk.driver.find_element("id", "pictures").send_keys(str(made / "digits" / name))
            desk.until(
                lambda name=name: (
                    name in desk.js("return [...document.querySelectorAll('#attached img')].map(e => e.alt).join()")
                )
            )
        desk.js("document.querySelector('#attached button').click()")
        desk.ask("which digit?")
        assert desk.texts(".answer h2") == ["tiny-llava", "seen"] and all("token" in f for f in desk.texts(".figures"))
        assert desk.js("return [...document.querySelectorAll('.turn img')].map(e => e.alt)") == ["4.png"]
        assert not desk.all("#attached img") and desk.complaints() == []


def test_what_data_say_is_text(desk):
    desk.open()
    desk.plan(data="desk/hostile.jsonl", training__steps="2", training__eval_fraction="0")
    desk.looked()
    assert HOSTILE in desk.js("return document.getElementById('tokens').textContent")
    assert desk.js("return [document.images.length, document.title]") == [0, "luthier studio"]
    assert desk.complaints() == []


@pytest.mark.parametrize("dark", [False, True])
def test_theme(desk, dark):
    desk.open(dark=dark)
    assert is_dark(desk.driver) is dark
    desk.click("theme")
    assert is_dark(desk.driver) is not dark


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_no_sideways_scroll(desk, width):
    desk.open(width, 812)
    desk.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    for part in ("new", "runs"):
        desk.js(f"document.querySelector('[data-part={part}]').click()")
        assert desk.js("return document.documentElement.scrollWidth") <= width


def test_the_page_asks_for_its_key(browser, folder):
    with studio(folder, "--api-key", "secret") as found:
        desk = Desk(browser, found, patience=60)
        look(browser, found)
        desk.until(lambda: desk.shown("unlock"))
        assert not desk.shown("plan")
        for said, told in (("wrong", "That is not the key."), ("secret", "")):
            desk.type("key", said)
            desk.js("document.querySelector('#unlock button').click()")
            desk.until(lambda told=told: desk.texts("#trouble") == [told] and (bool(told) or desk.shown("plan")))
