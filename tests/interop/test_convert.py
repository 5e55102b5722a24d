"""From any format that is read into any that is written: the same answers, or a reason."""

from __future__ import annotations

import pytest

import luthier as lt
from support.recorded import base, cases, logits
from support.thinned import thinned

BOTH = [name for name in lt.names("formats") if (cls := lt.find("formats", name, lt.Format)).reads() and cls.writes()]
CASES = cases()


@pytest.mark.parametrize(
    "to, case",
    thinned(BOTH, CASES, 3),
    ids=lambda each: each if isinstance(each, str) else f"{each.format}-{each.name}",
)
def test_what_one_library_wrote_reaches_the_others(to, case, tmp_path):
    model, reader = base(case.base), lt.find("formats", case.format, lt.Format)(**case.settings)
    try:
        lost = lt.convert(case.folder, tmp_path / "out", to=to, base=model, source=reader)
    except lt.LuthierError:
        assert not (tmp_path / "out").exists()
        return
    back = lt.import_adapter(tmp_path / "out", tmp_path / "back", base=model, source=to)
    found, wanted = logits(lt.load(base(case.base), back)), case.logits
    assert not lost and (found - wanted).abs().max() < 2e-5 * max(1.0, float(wanted.abs().max()))


def test_an_adapter_of_ours_is_exported_as_it_is(tmp_path):
    lt.save(lt.attach(base("llama"), lt.LoRA(rank=2)), tmp_path / "ours")
    assert lt.convert(tmp_path / "ours", tmp_path / "out", to="peft", base=base("llama")) == {}
    assert (tmp_path / "out" / "adapter_config.json").is_file()
