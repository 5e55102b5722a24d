"""Laws of import libraries: they know their own folders and no others, and leave a base as it was."""

from __future__ import annotations

import pytest

import luthier as lt
from luthier.core.contracts.component import find, names
from luthier.core.contracts.import_ import Source
from support.architectures import ARCHITECTURES

LIBRARIES = names("sources")


@pytest.mark.parametrize("name", LIBRARIES)
def test_settings_go_there_and_back(name):
    cls = find("sources", name)
    assert issubclass(cls, Source) and cls.from_dict(cls().to_dict()) == cls()


@pytest.mark.parametrize("name", [*LIBRARIES, None])
def test_folders_of_nobody_are_refused(name, tmp_path):
    base = ARCHITECTURES["llama"].build()
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    base.config.save_pretrained(tmp_path / "model")
    lt.save(lt.attach(base, lt.LoRA(rank=2)), tmp_path / "ours")
    for folder, message in (("empty", "holds nothing"), ("model", "not an adapter of"), ("ours", "already")):
        with pytest.raises(lt.LuthierError, match=message):
            lt.import_adapter(tmp_path / folder, tmp_path / "out", base=base, source=name, name="new")
    with pytest.raises(lt.LuthierError, match="no folder"):
        lt.import_adapter(tmp_path / "nowhere", tmp_path / "out", base=base, source=name)
    assert not (tmp_path / "out").exists()
