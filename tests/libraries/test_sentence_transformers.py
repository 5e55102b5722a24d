"""sentence-transformers: its vectors of an exported folder are ours, its loss of a batch is ours."""

from __future__ import annotations

import json

import pytest
import torch

import luthier as lt
from luthier import models
from luthier.methods.objectives.info_nce import mean_pooled
from support.tiny import save_model, write_rows

TEXTS = ["ab", "a longer text", "yes?", "ab ab ab"]


def trained(bert, tmp_path):
    rows = [{"anchor": f"{i} is", "positive": f"IS {i}", "negative": f"no {i + 1}"} for i in range(16)]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    return lt.train(
        bert,
        source,
        method="lora",
        out=str(tmp_path / "run"),
        steps=6,
        batch=8,
        lr=1e-2,
        progress=False,
        eval_fraction=0.0,
    )


def test_the_folder_is_whole(bert, tmp_path):
    result = trained(bert, tmp_path)
    base = models.load(bert, task="embedding", dtype="auto")
    lt.export(result.adapter, tmp_path / "out", to="sentence_transformers", base=base.model, processor=base.processor)
    listed = json.loads((tmp_path / "out" / "modules.json").read_text())
    assert [each["type"].rpartition(".")[2] for each in listed] == ["Transformer", "Pooling", "Normalize"]
    again = models.load(str(tmp_path / "out"), task="embedding")
    ours, theirs = (lt.predict(e.model, e.processor, [{"text": t} for t in TEXTS]).rows for e in (result, again))
    for a, b in zip(ours, theirs, strict=True):
        assert a["embedding"] == pytest.approx(b["embedding"], abs=1e-5)


def test_its_vectors_are_ours(bert, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    result = trained(bert, tmp_path)
    base = models.load(bert, task="embedding", dtype="auto")
    lt.export(result.adapter, tmp_path / "out", to="sentence_transformers", base=base.model, processor=base.processor)
    theirs = library.SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(TEXTS)
    found = lt.predict(result.model, result.processor, [{"text": text} for text in TEXTS])
    for row, vector in zip(found.rows, theirs, strict=True):
        assert row["embedding"] == pytest.approx(vector.tolist(), abs=1e-5)


def test_its_loss_is_ours(bert):
    """MultipleNegativesRankingLoss at its default scale, on the same vectors."""
    library = pytest.importorskip("sentence_transformers")
    losses = pytest.importorskip("sentence_transformers.losses")
    loaded = models.load(bert, task="embedding")
    ids = torch.randint(4, 90, (12, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[3, 4:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "texts": torch.full((12,), 3), "labels": torch.zeros(12)}
    with torch.no_grad():
        ours, figures = lt.InfoNCE().loss_and_figures(loaded.model, batch)
        vectors = mean_pooled(loaded.model(input_ids=ids, attention_mask=mask).last_hidden_state, mask)
        loss = losses.MultipleNegativesRankingLoss(None)
        theirs = loss.compute_loss_from_embeddings([vectors[0::3], vectors[1::3], vectors[2::3]], None)
    assert library and ours.item() == pytest.approx(theirs.item(), rel=1e-5) and figures["accuracy"].shape == (4,)


def test_the_loss_is_its_equation(bert):
    """Row by row in float64."""
    loaded = models.load(bert, task="embedding")
    ids = torch.randint(4, 90, (6, 5), generator=torch.Generator().manual_seed(1))
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "texts": torch.full((6,), 2),
        "labels": ids[:, 0],
    }
    chosen = lt.InfoNCE(scale=7.0)
    with torch.no_grad():
        ours = chosen.loss(loaded.model, batch).item()
        states = [loaded.model(input_ids=row[None]).last_hidden_state[0].double().mean(0) for row in ids]
    unit = [state / state.norm() for state in states]
    anchors, positives = unit[0::2], unit[1::2]
    each = [
        -(7 * float(a @ positives[i]) - float(torch.logsumexp(torch.stack([7 * a @ p for p in positives]), 0)))
        for i, a in enumerate(anchors)
    ]
    assert ours == pytest.approx(sum(each) / 3, rel=1e-5)
    assert chosen.token_counts(batch, torch.ones(6)).tolist() == [3]


def test_a_change_of_the_head_does_not_leave(tmp_path):
    base = save_model(tmp_path / "llama", "llama")
    loaded = models.load(base)
    lt.save(lt.attach(loaded.model, lt.LoRA(rank=2), "lm_head"), tmp_path / "adapter")
    lt.detach(loaded.model)
    with pytest.raises(lt.LuthierError, match="vectors are made without it"):
        lt.export(
            tmp_path / "adapter",
            tmp_path / "out",
            to="sentence_transformers",
            base=loaded.model,
            processor=loaded.processor,
        )
