"""The report in a real browser: it sorts, turns dark, fits a phone and runs nothing that a run wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.comparing.report import page as report
from support import browsing, made_up
from support.browsing import complaints, is_dark, look

pytestmark = browsing.needed


def shoot(folder: Path, path: Path, width: int = 1280, height: int = 1500, dark: bool = False) -> None:
    """A screenshot of the top of the report of a study's folder; makes the one in docs/images."""
    page = report.write(folder)
    with browsing.started() as driver:
        look(driver, page.as_uri(), width, height, dark)
        driver.save_screenshot(str(path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return made_up.study(tmp_path_factory.mktemp("study"), data=("arithmetic", "cola"))


@pytest.fixture(scope="module")
def page(folder) -> str:
    """The address of the report."""
    return report.write(folder).as_uri()


def column(driver: Any, index: int) -> list[str]:
    """What the cells of a column of the first table hold for sorting."""
    script = (
        "return [...document.querySelector('.results').tBodies[0].rows].map(r => r.cells[arguments[0]].dataset.sort)"
    )
    return driver.execute_script(script, index)


def test_sorts_by_click(browser, page):
    look(browser, page)
    head = browser.find_elements("css selector", ".results th.figure")[1]  # parameters
    index = browser.execute_script("return arguments[0].cellIndex", head)
    head.find_element("tag name", "button").click()
    up = [float(value) for value in column(browser, index)]
    assert up == sorted(up) and head.get_attribute("aria-sort") == "ascending"
    head.find_element("tag name", "button").click()
    assert [float(value) for value in column(browser, index)] == sorted(up, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    assert complaints(browser) == []


def test_sorts_by_keyboard_and_leaves_the_unmeasured_last(browser, page):
    from selenium.webdriver.common.keys import Keys

    look(browser, page)
    head = next(h for h in browser.find_elements("css selector", ".results th") if "Step time" in h.text)
    index = browser.execute_script("return arguments[0].cellIndex", head)
    for key in (Keys.ENTER, Keys.SPACE):
        head.find_element("tag name", "button").send_keys(key)
        values = column(browser, index)
        assert values[-1] == "" and all(values[:-1])
    assert head.get_attribute("aria-sort") == "descending"
    assert len(browser.find_elements("css selector", ".results [aria-sort]")) == 1
    assert "Step time, descending" in browser.execute_script(
        "return document.querySelector('[role=status]').textContent"
    )


@pytest.mark.parametrize("dark", [False, True])
def test_theme(browser, page, dark):
    look(browser, page, dark=dark)
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    assert is_dark(browser) is dark
    browser.find_element("id", "theme").click()
    assert is_dark(browser) is not dark
    browser.refresh()
    assert is_dark(browser) is not dark  # the choice is kept
    browser.execute_script("localStorage.clear()")
    assert complaints(browser) == []


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_no_sideways_scroll(browser, page, width):
    look(browser, page, width, 812)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    boxes = browser.execute_script("return [...document.querySelectorAll('.scroll')].map(b => b.clientWidth)")
    assert boxes and max(boxes) <= width


def test_long_words_do_not_widen_a_phone(browser, tmp_path):
    look(browser, report.write(made_up.hostile(tmp_path)).as_uri(), 375, 812)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 375


def test_screenshot(folder, tmp_path):
    shoot(folder, tmp_path / "compare.png", 640, 480)
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["compare.png"]


def test_copy_says_so(browser, page):
    look(browser, page)
    browser.execute_script("document.querySelector('details:has(.copy)').open = true")
    button = browser.find_element("css selector", ".copy")
    button.click()
    browser.execute_async_script("setTimeout(arguments[0], 200)")
    assert button.text in ("Copied", "Selected")


def test_nothing_that_a_run_wrote_is_run(browser, tmp_path):
    look(browser, report.write(made_up.hostile(tmp_path)).as_uri())
    assert "owned" not in browser.title.replace(made_up.HOSTILE, "")
    assert browser.execute_script("return document.title") != "owned"
    assert browser.execute_script("return document.scripts.length") == 1
    assert browser.execute_script("return document.images.length") == 0
    texts = [each.get_property("textContent") for each in browser.find_elements("css selector", ".answer pre")]
    assert made_up.HOSTILE in texts
    assert complaints(browser) == []  # the policy had nothing to refuse: all was text
    browser.find_element("id", "theme").click()
    assert browser.execute_script("return document.documentElement.dataset.theme") in ("light", "dark")


def test_policy_refuses_what_slips_through(browser, tmp_path):
    path = report.write(made_up.study(tmp_path, seeds=2))
    path.write_text(path.read_text().replace("<main>", "<main><script>document.title='owned'</script>"))
    look(browser, path.as_uri())
    assert browser.title != "owned"
    assert any("Content Security Policy" in each for each in complaints(browser))
