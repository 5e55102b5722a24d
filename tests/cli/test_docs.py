"""docs/methods.md is what the registry says now."""

from __future__ import annotations

from pathlib import Path

from luthier.cli.docs import FILE, REMAKE, main, markdown

PAGE = Path(__file__).parents[2] / FILE


def test_the_committed_page_is_current(monkeypatch):
    monkeypatch.delenv("LUTHIER_PATH", raising=False)
    assert PAGE.read_text(encoding="utf-8") == markdown(), f"stale: run `{REMAKE}` and commit {FILE}"


def test_a_bar_in_a_cell_does_not_end_it():
    assert all(
        row.replace("\\|", "").count("|") in (4, 5, 6) for row in markdown().splitlines() if row.startswith("| ")
    )


def test_it_writes_where_it_is_told(tmp_path):
    main([str(tmp_path / "deep" / "page.md")])
    assert (tmp_path / "deep" / "page.md").read_text(encoding="utf-8") == markdown()
