"""Adapters and fine-tuned models, combined on disk: tiny models in float64 where equations are compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import luthier as lt
from luthier.combining.parameter_refs import parameter_refs
from luthier.core.storage.format import read as read_spec
from luthier.methods.combinations.breadcrumbs import Breadcrumbs
from luthier.methods.combinations.composable import Composable
from luthier.methods.combinations.lines import LiNeS
from luthier.methods.combinations.task_arithmetic import TaskArithmetic
from luthier.methods.combinations.ties import TIES
from luthier.methods.combinations.transfer import Transfer
from support.architectures import ARCHITECTURES

NAME = "qwen2"


def build(seed: int = 0, dtype=torch.float64, **changes):
    from dataclasses import replace

    known = ARCHITECTURES[NAME]
    return replace(known, settings=known.settings | changes).build(seed=seed, dtype=dtype)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**ARCHITECTURES[NAME].inputs()).logits


def moved(model, seed: int, size: float = 0.05):
    """The model's trained parameters (all of a bare one), off their start."""
    generator = torch.Generator().manual_seed(seed)
    held = lt.trainable(model).values() if "_luthier" in vars(model) else model.parameters()
    with torch.no_grad():
        for tensor in held:
            tensor += size * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
    return model


def adapter(folder: Path, form=None, where=None, seed: int = 1, base=None) -> Path:
    model = lt.attach(base if base is not None else build(), form or lt.LoRA(rank=2), where)
    return lt.save(moved(model, seed), folder)


def full(folder: Path, seed: int = 1, **changes) -> Path:
    """A fine-tuned copy of the base, as a model folder."""
    moved(build(**changes), seed).save_pretrained(folder)
    return folder


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-9) -> bool:
    return bool((a - b).abs().max() <= tolerance * max(1.0, float(b.detach().abs().max())))


def both_ways(method, inputs, tmp_path, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the base with the combined adapter, and of the combined model."""
    lt.combine(method, inputs, base=build(), out=tmp_path / "adapter", **settings)
    model = build()
    lt.combine(method, inputs, base=model, out=tmp_path / "model", merged=True, **settings)
    return logits(lt.load(build(), tmp_path / "adapter")), logits(model)


# --- adapters and merged models agree --------------------------------------------------------------

FORMS = {
    "lora": (lambda: lt.LoRA(rank=2), None),
    "wegeft": (lambda: lt.WeGeFT(rank=2, share="type"), None),
    "hydra": (lambda: lt.Hydra(rank=2), "q_proj, v_proj"),
    "dora": (lambda: lt.DoRA(rank=2), "q_proj, v_proj"),
    "ia3": (lambda: lt.IA3(), "k_proj, v_proj"),
    "bitfit": (lambda: lt.BitFit(), None),
    "full": (lambda: lt.Full(), "params(model.layers.1.*)"),
    "tables": (lambda: lt.LoRA(rank=2), "embeddings, lm_head"),
    "sparse": (lambda: lt.Sparse(density=0.05), None),
}


@pytest.mark.parametrize("name", FORMS)
def test_one_adapter_comes_back_as_it_was(name, tmp_path):
    form, where = FORMS[name]
    folder = adapter(tmp_path / "one", form(), where)
    wanted = logits(lt.load(build(), folder))
    assert not close(wanted, logits(build()), 1e-4)
    first, second = both_ways("task_arithmetic", [folder], tmp_path)
    assert close(first, wanted) and close(second, wanted)


@pytest.mark.parametrize("method", [TaskArithmetic(scale=0.5), TIES(), Breadcrumbs(alpha=1.0), LiNeS()])
def test_a_saved_combination_gives_the_logits_of_the_merged_one(method, tmp_path):
    inputs = [
        adapter(tmp_path / "a", lt.LoRA(rank=2)),
        adapter(tmp_path / "b", lt.IA3(), "k_proj, v_proj", seed=2),
        full(tmp_path / "c", seed=3),
    ]
    first, second = both_ways(method, inputs, tmp_path, weights=[1.0, 0.5, 0.25])
    assert close(first, second) and not close(first, logits(build()), 1e-3)


def test_task_arithmetic_adds_what_the_weights_say(tmp_path):
    inputs = [full(tmp_path / "a", seed=1), full(tmp_path / "b", seed=2)]
    base, one, two = (weights(m) for m in (build(), moved(build(), 1), moved(build(), 2)))
    model = build()
    lt.combine("task_arithmetic", inputs, base=model, out=tmp_path / "out", merged=True, weights=[0.3, -0.6])
    for name, tensor in weights(model).items():
        assert close(tensor, base[name] + 0.3 * (one[name] - base[name]) - 0.6 * (two[name] - base[name]), 1e-12)


# --- what structure allows -------------------------------------------------------------------------


def test_low_rank_changes_stay_low_rank(tmp_path):
    inputs = [adapter(tmp_path / "a", lt.LoRA(rank=2)), adapter(tmp_path / "b", lt.WeGeFT(rank=1), "q_proj", seed=2)]
    report = lt.combine("task_arithmetic", inputs, base=build(), out=tmp_path / "out", weights=[0.5, 0.5])
    (part,) = read_spec(tmp_path / "out")["parts"]
    assert part["form"] == "lora" and part["where"] == "all-linear" and set(report.kept) == {"lora"}
    assert {r for path, r in part["ranks"].items() if "q_proj" in path} == {3}
    assert {r for path, r in part["ranks"].items() if "q_proj" not in path} == {2}


def test_sparse_changes_stay_sparse_and_the_codec_is_exact(tmp_path):
    lt.combine(Composable(density=0.1), [full(tmp_path / "a")], base=build(), out=tmp_path / "sparse")
    spec = read_spec(tmp_path / "sparse")
    assert [part["form"] for part in spec["parts"]] == ["sparse"]
    base, changed = weights(build()), weights(moved(build(), 1))
    model = lt.load(build(), tmp_path / "sparse")
    lt.merge(model)
    for name, tensor in weights(model).items():
        if ".adapters." in name:
            continue
        delta, kept = changed[name] - base[name], tensor - base[name]
        k = max(1, int(0.1 * delta.numel()))
        assert int(kept.count_nonzero()) <= k
        assert close(kept.flatten()[kept.flatten().nonzero()], delta.flatten()[kept.flatten().nonzero()], 1e-12)
    lt.detach(lt.unmerge(model))
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.named_parameters())
    assert torch.equal(logits(model), logits(build()))


def test_a_task_and_a_language_commute(tmp_path):
    for name, seed in (("task", 1), ("language", 2)):
        full(tmp_path / f"full-{name}", seed=seed)
        lt.combine(Composable(density=0.05), [tmp_path / f"full-{name}"], base=build(), out=tmp_path / name)
    pair = [tmp_path / "task", tmp_path / "language"]
    lt.combine("composable", pair, base=build(), out=tmp_path / "one")
    lt.combine("composable", pair[::-1], base=build(), out=tmp_path / "other")
    assert {part["form"] for part in read_spec(tmp_path / "one")["parts"]} == {"sparse"}
    together = logits(lt.load(build(), tmp_path / "one"))
    assert torch.equal(together, logits(lt.load(build(), tmp_path / "other")))
    model = build()
    for folder in pair:
        lt.load(model, folder, folder.name)
    assert close(together, logits(model), 1e-12)


def test_truncation_tells_its_error(tmp_path):
    inputs = [full(tmp_path / "a")]
    report = lt.combine("task_arithmetic", inputs, base=build(), out=tmp_path / "out", rank=4)
    matrices = [(group[0].name, group[0].tensor) for group in parameter_refs(build()) if group[0].tensor.dim() == 2]
    changed, lost, total = weights(moved(build(), 1)), 0.0, 0.0
    for name, tensor in matrices:
        values = torch.linalg.svdvals(changed[name] - tensor.detach())
        lost += float((values[4:] ** 2).sum())
    for name, tensor in weights(build()).items():
        total += float((changed[name] - tensor).pow(2).sum())
    assert report.truncation == pytest.approx((lost / total) ** 0.5)
    assert {part["form"] for part in read_spec(tmp_path / "out")["parts"]} == {"lora", "full"}


def test_wide_numbers_are_aligned_in_the_file(tmp_path):
    lt.combine(Composable(density=0.03), [full(tmp_path / "a")], base=build(), out=tmp_path / "out")
    with open(tmp_path / "out" / "adapter.safetensors", "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    widths = {"F64": 8, "F32": 4, "I32": 4, "I64": 8}
    entries = [each for name, each in header.items() if name != "__metadata__"]
    assert size % 8 == 0 and {each["dtype"] for each in entries} == {"F64", "I32"}
    assert all(each["data_offsets"][0] % widths[each["dtype"]] == 0 for each in entries)


# --- tied tensors ----------------------------------------------------------------------------------


def test_a_tied_head_stays_tied(tmp_path):
    tied = {"tie_word_embeddings": True}
    folder = full(tmp_path / "a", **tied)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    wanted = logits(moved(build(**tied), 1))
    lt.combine("task_arithmetic", [folder], base=build(**tied), out=tmp_path / "adapter")
    model = build(**tied)
    lt.combine("task_arithmetic", [folder], base=model, out=tmp_path / "model", merged=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert close(logits(model), wanted) and close(logits(lt.load(build(**tied), tmp_path / "adapter")), wanted)


def test_a_head_that_changes_alone_is_untied(tmp_path):
    tied = {"tie_word_embeddings": True}
    folder = adapter(tmp_path / "a", lt.LoRA(rank=2), "lm_head", base=build(**tied))
    wanted = logits(lt.load(build(**tied), folder))
    lt.combine("task_arithmetic", [folder], base=build(**tied), out=tmp_path / "adapter")
    assert close(logits(lt.load(build(**tied), tmp_path / "adapter")), wanted)
    model = build(**tied)
    with pytest.warns(UserWarning, match="untied"):
        lt.combine("task_arithmetic", [folder], base=model, out=tmp_path / "model", merged=True)
    assert close(logits(model), wanted) and not model.config.tie_word_embeddings
    with pytest.raises(lt.LuthierError, match="tied to another"):
        lt.combine(TIES(density=1.0), [folder], base=build(**tied), out=tmp_path / "no")


# --- another base ----------------------------------------------------------------------------------


def grown(size: float = 0.02):
    """The base after some training of its own."""
    return moved(build(), 9, size)


def saved(model, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder)


def test_transfer_onto_the_source_is_the_fine_tuned_model(tmp_path):
    old, tuned = saved(build(), tmp_path / "old"), full(tmp_path / "tuned")
    model = build()
    lt.combine("transfer", [tuned], base=model, out=tmp_path / "out", source=old, merged=True)
    assert all(close(t, u, 1e-12) for t, u in zip(model.parameters(), moved(build(), 1).parameters(), strict=True))


def test_transfer_adds_the_difference_and_tells_the_gap(tmp_path):
    old, tuned, model = saved(build(), tmp_path / "old"), full(tmp_path / "tuned"), grown()
    report = lt.combine(Transfer(scale=0.5), [tuned], base=model, out=tmp_path / "out", source=old, merged=True)
    base, new, target = weights(build()), weights(moved(build(), 1)), weights(grown())
    for name, tensor in weights(model).items():
        assert close(tensor, target[name] + 0.5 * (new[name] - base[name]), 1e-12)
    gap = sum(float((target[name] - base[name]).pow(2).sum()) for name in base) ** 0.5
    assert report.tally.total("gap") == pytest.approx(gap)


@pytest.mark.parametrize("rows", [90, 110])
def test_transfer_pads_the_tokens_that_one_lacks(rows, tmp_path):
    """The fine-tuned model has 97 + 3 tokens, its base 97, the target `rows`."""
    old = saved(build(), tmp_path / "old")
    tuned = moved(build(), 1)
    tuned.resize_token_embeddings(100, mean_resizing=False)
    tuned.save_pretrained(tmp_path / "tuned")
    model = build(seed=0)
    model.resize_token_embeddings(rows, mean_resizing=False)
    before = model.model.embed_tokens.weight.detach().clone()
    if rows == 90:  # the source base would lose rows, so it is refused
        with pytest.raises(lt.LuthierError):
            lt.combine("transfer", [tmp_path / "tuned"], base=model, out=tmp_path / "no", source=old)
    kept = max(rows, 100)
    lt.combine("transfer", [tmp_path / "tuned"], base=model, out=tmp_path / "out", source=old, merged=True)
    table, new = model.model.embed_tokens.weight.detach(), tuned.model.embed_tokens.weight.detach()
    assert len(table) == kept == model.config.vocab_size
    theta = torch.zeros(kept, before.shape[1], dtype=before.dtype)
    theta[: len(before)] = before
    theta[:97] += new[:97] - build().model.embed_tokens.weight.detach()
    theta[97:100] += new[97:]
    assert close(table, theta, 1e-12)


def trained(model, steps: int, seed: int, form=None):
    """Steps of AdamW on a fixed batch of its own."""
    batch = torch.randint(3, 97, (8, 12), generator=torch.Generator().manual_seed(seed))
    if form is not None:
        lt.attach(model, form)
    held = list(lt.trainable(model).values()) if form is not None else list(model.parameters())
    optimizer = torch.optim.AdamW(held, lr=1e-2 if form is not None else 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    return model


def loss_on(model, seed: int) -> float:
    batch = torch.randint(3, 97, (8, 12), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return float(model(input_ids=batch, labels=batch).loss)


@pytest.mark.parametrize("form", [lt.LoRA(rank=2), lt.WeGeFT(rank=2)])
def test_a_patch_moves_to_a_base_that_trained_on(form, tmp_path):
    old = saved(build(), tmp_path / "old")
    patch = lt.save(trained(build(), 30, 1, form), tmp_path / "patch")
    same = build()
    lt.combine("portllm", [patch], base=same, out=tmp_path / "same", source=old, merged=True)
    assert close(logits(same), logits(lt.load(build(), patch)), 1e-9)
    new = trained(build(), 10, 2)
    report = lt.combine("portllm", [patch], base=new, out=tmp_path / "ported", source=old)
    assert report.tally.total("gap") > 0 and set(report.kept) == {"lora"}
    unported = loss_on(new, 1)
    assert loss_on(lt.load(new, tmp_path / "ported"), 1) < unported - 0.5


def test_a_patch_is_lowered_at_the_base_that_it_was_fitted_on(tmp_path):
    """WeGeFT's change is W φ ψ: that of the old W."""
    old = saved(build(), tmp_path / "old")
    patch = adapter(tmp_path / "patch", lt.WeGeFT(rank=2), "q_proj")
    model = grown()
    lt.combine("portllm", [patch], base=model, out=tmp_path / "out", source=old, merged=True)
    before = lt.load(build(), patch)
    lt.merge(before)
    path = "model.layers.1.self_attn.q_proj.weight"
    change = before.get_parameter(path) - build().get_parameter(path)
    assert close(model.get_parameter(path), grown().get_parameter(path) + change, 1e-12)


def test_an_encoder_and_a_decoder_count_their_own_blocks():
    from dataclasses import replace

    from luthier.core.sites.scope import Scope

    known = ARCHITECTURES["t5"]
    scope = Scope(replace(known, settings=known.settings | {"num_layers": 2, "num_decoder_layers": 4}).build())
    found = {group[0].name: group[0].place(scope, {}) for group in parameter_refs(scope.model)}
    depths = {name.split(".")[0]: at.depth for name, at in found.items() if ".block." in name}
    last = {name.split(".")[0]: at.site.layer for name, at in found.items() if ".block." in name}
    assert depths == {"encoder": 2, "decoder": 4} and last == {"encoder": 1, "decoder": 3}


# --- what is refused -------------------------------------------------------------------------------


def test_strangers_are_refused(tmp_path):
    patch = adapter(tmp_path / "patch")
    with pytest.raises(lt.LuthierError, match="another"):
        lt.combine("task_arithmetic", [patch], base=build(seed=3), out=tmp_path / "no")
    with pytest.raises(lt.LuthierError, match="trained apart"):
        lt.combine("portllm", [patch], base=build(seed=3), out=tmp_path / "no")
    with pytest.raises(lt.LuthierError, match="other layers"):
        lt.combine("portllm", [patch], base=build(num_hidden_layers=2), out=tmp_path / "no")
    with pytest.raises(lt.LuthierError, match="trained apart"):
        lt.combine("ties", [full(tmp_path / "f")], base=build(seed=3), out=tmp_path / "no")
    with pytest.warns(UserWarning, match="trained apart"):
        lt.combine("portllm", [patch], base=build(seed=3), out=tmp_path / "forced", force=True)
    assert not (tmp_path / "no").exists()


def test_a_source_that_the_patch_was_not_fitted_on_is_refused(tmp_path):
    other = saved(grown(0.05), tmp_path / "other")
    with pytest.raises(lt.LuthierError, match="not fitted on the source"):
        lt.combine("portllm", [adapter(tmp_path / "a")], base=build(), out=tmp_path / "no", source=other)


def test_tokens_with_other_numbers_are_refused(tmp_path):
    old = saved(build(), tmp_path / "old")
    here = saved(build(), tmp_path / "here")
    for folder, order in ((old, ["a", "b"]), (here, ["b", "a"])):
        vocabulary = {token: i for i, token in enumerate(order)}
        (Path(folder) / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
    model = type(build()).from_pretrained(here)
    with pytest.raises(lt.LuthierError, match="number their tokens"):
        lt.combine("portllm", [adapter(tmp_path / "a")], base=model, out=tmp_path / "no", source=old)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"weights": [1.0]}, "weights for 2 inputs"),
        ({"weights": [1.0, float("nan")]}, "finite"),
        ({"rank": 0}, "rank"),
        ({"source": "somewhere"}, "one base"),
        ({"method": "tie"}, "did you mean 'ties'"),
    ],
)
def test_bad_requests_are_refused_before_work(settings, why, tmp_path):
    inputs = [adapter(tmp_path / "a"), adapter(tmp_path / "b", seed=2)]
    method = settings.pop("method", "ties")
    with pytest.raises(lt.LuthierError, match=why):
        lt.combine(method, inputs, base=build(), out=tmp_path / "no", **settings)
    assert not (tmp_path / "no").exists()


def test_what_is_no_weight_is_refused(tmp_path):
    for form, where in ((lt.LoReFT(rank=2), None), (lt.Bottleneck(), None)):
        folder = adapter(tmp_path / form.name(), form, where)
        with pytest.raises(lt.LuthierError, match="cannot be merged"):
            lt.combine("ties", [folder], base=build(), out=tmp_path / "no")


def test_damage_is_refused(tmp_path):
    folder = adapter(tmp_path / "a")
    file = folder / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(lt.LuthierError, match="damaged"):
        lt.combine("ties", [folder], base=build(), out=tmp_path / "no")


def test_a_whole_model_that_moves_needs_its_source(tmp_path):
    with pytest.raises(lt.LuthierError, match="source base"):
        lt.combine("transfer", [full(tmp_path / "a")], base=build(), out=tmp_path / "no")


# --- the report ------------------------------------------------------------------------------------


def test_the_report_tells_norms_and_agreement(tmp_path, drawn):
    one, two = full(tmp_path / "a", seed=1), full(tmp_path / "b", seed=2)
    report = lt.combine("task_arithmetic", [one, one, two], base=build(), out=tmp_path / "out")
    found = json.loads((tmp_path / "out" / "combined.json").read_text())
    assert found["cosines"][0][1] == pytest.approx(1.0) and abs(found["cosines"][0][2]) < 0.05
    assert set(found["blocks"]) == {"-1", "0", "1", "2"} and (tmp_path / "out" / "combined.png").stat().st_size > 1e4
    base, first = weights(build()), weights(moved(build(), 1))
    block = [name for name in base if ".layers.1." in name]
    norm = sum(float((first[name] - base[name]).pow(2).sum()) for name in block) ** 0.5
    assert found["blocks"]["1"]["inputs"][0] == pytest.approx(norm)
    signs = [(first[n] - base[n]).sign() == (weights(moved(build(), 2))[n] - base[n]).sign() for n in block]
    assert found["blocks"]["1"]["agreement"] == pytest.approx(
        float(torch.cat([s.flatten() for s in signs]).double().mean())
    )
    assert report.folder == tmp_path / "out"


def test_a_checkpoint_under_other_names_is_read_through_transformers(tmp_path):
    """Mixtral's experts are stored one by one and held in one tensor."""
    known = ARCHITECTURES["mixtral"]
    tuned = moved(known.build(), 1)
    tuned.save_pretrained(tmp_path / "tuned")
    with safe_open(tmp_path / "tuned" / "model.safetensors", "pt") as file:
        assert set(file.keys()) != {name for name, _ in tuned.named_parameters()}
    model = known.build()
    lt.combine("task_arithmetic", [tmp_path / "tuned"], base=model, out=tmp_path / "out", merged=True)
    assert all(close(t, u, 1e-5) for t, u in zip(model.parameters(), tuned.parameters(), strict=True))
