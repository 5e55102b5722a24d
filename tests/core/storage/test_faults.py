"""A save whose steps fail, each in turn: what is there afterwards is the old adapter or the new one, and it is told in
a line."""

from __future__ import annotations

import torch

import luthier as lt
from luthier.core.storage.format import read
from support.architectures import ARCHITECTURES
from support.faults import faults


def test_after_a_failed_save_the_old_adapter_or_the_new_one_loads(tmp_path):
    model = lt.attach(ARCHITECTURES["llama"].build(), lt.LoRA(rank=2), where="q_proj")
    bare, folder = ARCHITECTURES["llama"].build(), tmp_path / "adapter"
    bare.load_state_dict({key: t for key, t in model.state_dict().items() if ".adapters." not in key})

    def save(value: int) -> None:
        with torch.no_grad():
            for parameter in lt.trainable(model).values():
                parameter.fill_(value)
        lt.save(model, folder, measured={"value": value})

    def held() -> int:
        lt.load(bare, folder)
        found = {float(x) for p in lt.trainable(bare).values() for x in p.detach().flatten()}
        lt.detach(bare)
        found.add(float(read(folder)["measured"]["value"]))
        assert len(found) == 1
        return int(found.pop())

    save(0)
    seen, met = set(), set()
    for at in range(1, 1000):
        before = held()
        told = ""
        with faults(tmp_path, at) as fault:
            try:
                save(at)
            except lt.LuthierError as error:
                told = str(error)
        if not fault.what:
            break
        met.add(fault.what.split()[0])
        assert folder.is_dir(), fault.what  # before anything puts it back
        seen.add(held() == at)
        assert held() in (before, at), fault.what
        if held() != at:
            assert told and "\n" not in told, fault.what
        assert not told or ("as it was" in told) == (held() == before) != ("is written" in told), (fault.what, told)
        save(at)  # there is space again
        assert held() == at and [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert seen == {True, False} and at > 15 and {"open", "os.rename", "fsync", "half", "os.mkdir"} <= met
