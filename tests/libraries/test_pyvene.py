"""pyvene as the oracle of patching: the same heads exchanged between the same rows give the same logits, and a head's
path to the logits the same loss.

pyvene is no dependency of Luthier; without it these tests are skipped (they passed with pyvene 0.1.8, logits to the
last bit).
"""

from __future__ import annotations

import pytest
import torch

from luthier.core.sites.heads import heads
from luthier.methods.examinations._patching import direct, loss, read, replacing, rolled
from support.architectures import ARCHITECTURES

pyvene = pytest.importorskip("pyvene")


@pytest.mark.parametrize("head", [None, 2])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_exchanging_heads_is_pyvenes(name, head):
    model = ARCHITECTURES[name].build()
    ids = torch.randint(3, 97, (4, 9), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    with torch.no_grad():
        outputs, _ = read(model, batch)
        share = torch.ones(4) if head is None else torch.nn.functional.one_hot(torch.tensor(head), 4).float()
        with heads(model, replacing(rolled(outputs), {list(outputs)[1]: share})):
            ours = model(input_ids=ids).logits
    positions = [[list(range(9))] * 4]
    where = positions if head is None else [[[[head]] * 4, [list(range(9))] * 4]]
    kind = {"component": "attention_value_output"}
    if head is not None:
        kind = {"component": "head_attention_value_output", "unit": "h.pos", "max_number_of_units": 9}
    settings = pyvene.IntervenableConfig([{"layer": 1, "intervention_type": pyvene.VanillaIntervention, **kind}])
    places = {"sources->base": (where, where)}
    _, theirs = pyvene.IntervenableModel(settings, model=model)(
        {"input_ids": ids}, [{"input_ids": ids.roll(-1, 0)}], unit_locations=places
    )
    assert torch.equal(theirs.logits, ours)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_path_to_the_logits_is_pyvenes(name):
    """One head has the output of another row, every other head its own, so only what that head writes to the logits
    differs: path patching, with interventions in all blocks at once."""
    model, block, head = ARCHITECTURES[name].build(), 0, 2
    ids = torch.randint(3, 97, (4, 9), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    with torch.no_grad():
        outputs, _ = read(model, batch)
        ours = direct(model, batch, outputs, rolled(outputs), (list(outputs)[block], head))
    settings, places, sources = [], [], []
    for layer in range(len(outputs)):
        for part in [[head], [n for n in range(4) if n != head]] if layer == block else [list(range(4))]:
            kind = {"component": "head_attention_value_output", "unit": "h.pos", "max_number_of_units": 36}
            settings.append({"layer": layer, "intervention_type": pyvene.VanillaIntervention, **kind})
            places.append([[part] * 4, [list(range(9))] * 4])
            sources.append({"input_ids": ids.roll(-1, 0) if part == [head] else ids})
    patched = pyvene.IntervenableModel(pyvene.IntervenableConfig(settings), model=model)
    _, theirs = patched({"input_ids": ids}, sources, unit_locations={"sources->base": (places, places)})
    losses = torch.nn.functional.cross_entropy(theirs.logits[:, :-1].mT, ids[:, 1:])
    assert float(losses) == pytest.approx(ours, rel=1e-6)
    assert ours != pytest.approx(float(loss(model, batch)), rel=1e-4)
