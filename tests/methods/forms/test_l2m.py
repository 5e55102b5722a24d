"""L2M: the equation in float64, which entry is taken and why, and a stream of tasks that keeps what it learned."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from transformers import TrainerCallback

import luthier as lt
from luthier import models
from luthier.core.adapters.control import tensors, watched
from luthier.core.contracts.router import ROUTE_QUERY, RoutedBatch, routing
from luthier.core.contracts.site import Site
from luthier.engine.batch import Batch
from luthier.engine.job import Job, Vocabulary
from luthier.engine.request import Request
from luthier.training import Run, Training, train
from luthier.training import routing as routing_table
from support.architectures import ARCHITECTURES
from support.tiny import TEMPLATE, save_model, write_rows

SITE = Site("layer", "affine", 12, 8)
SMALL = {"pool": 5, "rank": 2}


def build(name: str = "llama"):
    return ARCHITECTURES[name].build(dtype=torch.float64)


def ids(rows: int = 3, length: int = 9) -> torch.Tensor:
    return ARCHITECTURES["llama"].inputs(rows, length)["input_ids"]


def adapted(name: str = "llama", **settings):
    torch.manual_seed(0)
    model = lt.attach(build(name), lt.L2M(**SMALL | settings), "q_proj, v_proj, down_proj" if name == "llama" else None)
    for key, tensor in lt.trainable(model).items():
        if not key.endswith("keys"):
            tensor.data += 0.3 * torch.randn(tensor.shape, dtype=torch.float64)
    return model


def taken(model, **given) -> list[list[int]]:
    """The entry of each row at each site."""
    with torch.no_grad(), watched(model) as routes:
        model(**given)
    return [route.logits.flatten(0, -2).argmax(-1).tolist() for route in routes]


def keys_of(model) -> list[torch.Tensor]:
    return [t for key, t in tensors(model).items() if key.endswith("keys")]


def test_a_row_takes_the_lora_whose_key_is_nearest():
    form = lt.L2M(**SMALL, alpha=6.0)
    p = {key: torch.randn_like(t).double() for key, t in form.init(SITE, {}).items()}
    x, y, q = torch.randn(3, 4, 12).double(), torch.randn(3, 4, 8).double(), torch.randn(3, 12).double()
    found = routing(form.eval_mode())({**p, ROUTE_QUERY: q}, x, y)
    near = functional.cosine_similarity(q[:, None], p["keys"][None], dim=-1).argmax(-1)
    for row, i in enumerate(near.tolist()):
        wanted = y[row] + 3.0 * x[row] @ p["A"][i].T @ p["B"][i].T
        assert torch.allclose(found[row], wanted, rtol=1e-10, atol=1e-12)


def test_in_training_usage_before_this_task_weighs_the_similarity():
    """(cos + 1)/2 times the inverse counts, which sum to 1 (their pos_sim); outside training the cosine alone."""
    form = lt.L2M(**SMALL)
    p = {key: torch.randn_like(t).double() for key, t in form.init(SITE, {}).items()}
    p["before"] = torch.tensor([0.6, 0.1, 0.3, 0.0, 0.0]).double()
    x, q = torch.randn(40, 2, 12).double(), torch.randn(40, 12).double()
    cosines = functional.cosine_similarity(q[:, None], p["keys"][None], dim=-1)
    inverse = 1 / (p["before"] + 1e-6)
    wanted = ((cosines + 1) / 2 * inverse / inverse.sum()).argmax(-1)
    entries = lambda f: f.route({**p, ROUTE_QUERY: q}, x)[:, 0].argmax(-1)  # noqa: E731
    assert torch.equal(entries(form), wanted) and set(wanted.tolist()) <= {3, 4}
    assert torch.equal(entries(form.eval_mode()), cosines.argmax(-1))
    assert torch.equal(entries(replace(form, usage=False)), cosines.argmax(-1))
    logits = form.route({**p, ROUTE_QUERY: q}, x)
    assert torch.allclose(logits.amax(-1)[:, 0], cosines.gather(1, wanted[:, None])[:, 0], rtol=1e-12)


def test_the_query_is_the_masked_mean_of_the_prompts_embeddings():
    model, given = adapted(), ids()
    mask = torch.ones_like(given)
    mask[0, :4] = 0
    labels = given.clone()
    labels[1, :6] = -100
    labels[[0, 2]] = -100
    table = build().get_input_embeddings().weight
    means = [table[given[0, 4:]].mean(0), table[given[1, :6]].mean(0), table[given[2]].mean(0)]
    (keys, *others) = keys_of(model)
    assert all(torch.equal(keys, other) for other in others)  # all sites have one set
    wanted = functional.cosine_similarity(torch.stack(means)[:, None], keys[None], dim=-1).argmax(-1).tolist()
    entries = taken(model, input_ids=given, attention_mask=mask, labels=labels)
    assert entries == [wanted] * len(entries) and len(set(wanted)) > 1


def test_the_keys_learn_by_their_own_loss_alone_in_any_loop():
    model = adapted(beta=0.7)
    (first, *_), table = keys_of(model), build().get_input_embeddings().weight.detach()
    entries = taken(model, input_ids=ids())[0]
    model(input_ids=ids()).logits.square().sum().backward()
    copy = first.detach().clone().requires_grad_()
    cosines = functional.cosine_similarity(table[ids()].mean(1)[:, None], copy[None], dim=-1)
    (-0.7 * cosines[torch.arange(3), entries].mean()).backward()
    assert all(torch.allclose(k.grad, copy.grad, rtol=1e-9, atol=1e-12) for k in keys_of(model))  # type: ignore[arg-type]
    with watched(model) as routes:
        model(input_ids=ids())
    told = lt.L2M(**SMALL, beta=0.7).balance([route.logits for route in routes], RoutedBatch())
    assert told is not None and not told.requires_grad
    assert float(told) == pytest.approx(-0.7 * cosines[torch.arange(3), entries].mean().item(), rel=1e-9)
    assert lt.L2M(beta=0.0).balance([torch.zeros(2, 1, 30)], RoutedBatch()) is None


def test_entries_not_taken_get_no_gradient_and_one_entry_is_lora():
    model = adapted()
    entries = set(taken(model, input_ids=ids())[0])
    model(input_ids=ids()).logits.square().sum().backward()
    for key, tensor in lt.trainable(model).items():
        assert tensor.grad is not None
        moved = {i for i in range(5) if tensor.grad[i].any()}
        assert moved == entries, key
    one = adapted(pool=1)
    lora = lt.attach(build(), lt.LoRA(rank=2, alpha=16.0), "q_proj, v_proj, down_proj")
    for key, tensor in lt.trainable(lora).items():
        tensor.data = lt.trainable(one)[key].data[0]
    with torch.no_grad():
        assert torch.allclose(one(input_ids=ids()).logits, lora(input_ids=ids()).logits, rtol=1e-10)


def test_decoding_goes_by_the_prompt_whatever_was_generated():
    """With a cache, without one, and behind prompts padded on the left: the entry of the prompt stays."""
    model, given = adapted().eval(), ids(2)
    mask = torch.ones_like(given)
    mask[0, :5] = 0
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    wanted = taken(model, input_ids=given, attention_mask=mask)[0]
    with watched(model) as routes:
        found = model.generate(input_ids=given, attention_mask=mask, **settings)
    assert {tuple(r.logits.flatten(0, -2).argmax(-1).tolist()) for r in routes} == {tuple(wanted)}
    assert torch.equal(found, model.generate(input_ids=given, attention_mask=mask, use_cache=False, **settings))
    beams = model.generate(input_ids=given, attention_mask=mask, num_beams=2, **settings)
    alone = model.generate(input_ids=given[1:], num_beams=2, **settings)
    assert torch.equal(beams[1], alone[0])


def test_what_has_no_prompt_is_refused():
    model = build()
    with torch.no_grad():
        cache = model(input_ids=ids(), use_cache=True).past_key_values
    lt.attach(model, lt.L2M(**SMALL), "q_proj")
    with pytest.raises(lt.LuthierError, match="the cache was filled while the adapter was not there"):
        model(input_ids=ids()[:, :1], past_key_values=cache)
    with lt.prompt(model, 20), pytest.raises(lt.LuthierError, match="in chunks"):
        model(input_ids=ids())
    with pytest.raises(lt.LuthierError, match="encoder-decoder"):
        lt.attach(build("t5"), lt.L2M(**SMALL))
    with pytest.raises(lt.LuthierError, match="train=router"):
        lt.L2M(train="router")


# --- a stream of tasks --------------------------------------------------------------------------------

TASKS = {"0123": lambda s: s, "abcd": lambda s: s[::-1], "WXYZ": lambda s: s[0] * 3}
"""The letters of a task's words, and what it makes of a word."""
ASKED = "what is next to "
SHORT = Training(steps=20, batch=16, lr=3e-2, schedule="constant", warmup=0.0, eval_fraction=0.0, save_every=10, keep=9)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("base"), "llama", TEMPLATE, num_hidden_layers=2)


def rows_of(letters: str) -> list[dict[str, str]]:
    words = ["".join(each) for each in itertools.product(letters, repeat=3)][::2]
    return [{"prompt": f"{ASKED}{each}{letters}", "completion": TASKS[letters](each)} for each in words]


def stream(base: str, form: lt.Form, folder, steps: int = 20):
    """Each task's run goes on from the one before; with the loss of every task's rows after each."""
    found, losses, before, training = [], [], None, replace(SHORT, steps=steps)
    for number, letters in enumerate(TASKS):
        file, out = write_rows(folder / f"{number}.jsonl", rows_of(letters)), str(folder / str(number))
        if before is None:
            done = train(Run(base, file, form, "q_proj, v_proj, down_proj", out=out, training=training), progress=False)
        else:
            done = lt.train(base, file, from_adapter=before, out=out, progress=False, **vars(training))
        before = str(done.folder)
        found.append(done)
        losses.append([loss_of(done, each) for each in TASKS])
    return found, losses


def encoded(done, letters: str) -> dict[str, torch.Tensor]:
    rows = [row["prompt"] + row["completion"] for row in rows_of(letters)]
    given = done.processor(rows, add_special_tokens=False, return_tensors="pt")["input_ids"]
    return {"input_ids": given, "labels": torch.where(torch.arange(given.shape[1]) < given.shape[1] - 3, -100, given)}


@torch.no_grad()
def loss_of(done, letters: str) -> float:
    return float(done.model.eval()(**encoded(done, letters)).loss)


def entries_of(done) -> dict[str, set[int]]:
    return {each: set(taken(done.model.eval(), **encoded(done, each))[0]) for each in TASKS}


@pytest.fixture(scope="module")
def streams(base, tmp_path_factory):
    pool = lt.L2M(pool=6, rank=4)
    forms = {"pool": (pool, 20), "careless": (replace(pool, usage=False), 20), "lora": (lt.LoRA(rank=4), 20)}
    return {name: stream(base, form, tmp_path_factory.mktemp(name), steps) for name, (form, steps) in forms.items()}


def test_a_stream_uses_several_entries_and_without_usage_one(streams):
    (runs, _), (careless, _) = streams["pool"], streams["careless"]
    assert len(set.union(*entries_of(runs[-1]).values())) >= 2
    assert len(set.union(*entries_of(careless[-1]).values())) == 1


def test_a_stream_forgets_less_than_one_lora(streams):
    forgot = {name: losses[-1][0] - losses[0][0] for name, (_, losses) in streams.items()}
    assert abs(forgot["pool"]) < 0.1 * forgot["lora"] and forgot["lora"] > 0.2, forgot
    assert streams["pool"][1][-1][2] < 0.7 * streams["pool"][1][0][2]  # and the last task was learned


def test_a_new_task_leaves_what_earlier_ones_used_and_the_base_to_the_bit(streams, base):
    runs, _ = streams["pool"]
    held = [{key: t.detach() for key, t in tensors(done.model).items()} for done in runs]
    for before, after in itertools.pairwise(held):
        used = next(t for key, t in before.items() if key.endswith("counts")) > 0
        assert used.any() and not used.all()
        for key, tensor in before.items():
            if key.endswith((".A", ".B", ".keys")):
                assert torch.equal(tensor[used], after[key][used])
                assert not torch.equal(tensor[~used], after[key][~used])
    fresh = models.load(base).model.state_dict()
    assert all(torch.equal(tensor, runs[-1].model.state_dict()[key]) for key, tensor in fresh.items())


def test_the_counts_are_the_mean_over_all_steps_and_a_task_begins_with_them(streams):
    for number, done in enumerate(streams["pool"][0]):
        held = {key.rpartition(".")[2]: t for key, t in tensors(done.model).items()}
        assert float(held["steps"]) == 20 * (number + 1)
        assert float(held["counts"].sum()) == pytest.approx(1.0, abs=1e-5)
        share = number / (number + 1)  # what was counted before this task, in what is counted now
        new = (held["counts"] - share * held["before"]).clamp(min=0).sum()
        assert float(new) == pytest.approx(1 - share, abs=1e-4)
        rows = [row for row in routing_table.read(done.folder) if row.step == 20]
        assert sum(row.load for row in rows if row.site == rows[0].site) == pytest.approx(1.0, abs=1e-5)


def test_a_killed_task_goes_on_with_the_same_bits(base, streams, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 14:
                raise KeyboardInterrupt

    (first, whole, _), _ = streams["pool"]
    file = write_rows(tmp_path / "1.jsonl", rows_of(list(TASKS)[1]))
    given = {"from_adapter": str(first.folder), "out": str(tmp_path / "cut"), "progress": False, **vars(SHORT)}
    with pytest.raises(KeyboardInterrupt):
        lt.train(base, file, callbacks=[Stop()], **given)
    resumed = lt.train(base, file, resume=True, **given)
    assert all(torch.equal(t, tensors(resumed.model)[key]) for key, t in tensors(whole.model).items())


def generated(done, prompt: list[int]) -> str:
    given = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}
    found = done.model.generate(**given, max_new_tokens=9, do_sample=False, pad_token_id=0)
    return done.processor.decode(found[0, len(prompt) :], skip_special_tokens=True)


def test_served_rows_keep_the_entries_of_their_prompts(streams):
    """Rows come and go beside the base's; each gets what it gets alone."""
    done = streams["pool"][0][-1]
    prompts = [done.processor(row["prompt"], add_special_tokens=False)["input_ids"]
               for row in (rows_of(each)[i] for i, each in enumerate((*TASKS, *TASKS)))]  # fmt: skip
    model = done.model.eval()
    wanted = [generated(done, prompt) for prompt in prompts]
    with lt.disabled(model):
        wanted[1] = generated(done, prompts[1])
    names: list = ["default"] * len(prompts)
    names[1] = None
    words, told = Vocabulary.of(model, done.processor), [[] for _ in prompts]
    asked = [Request(tuple(p), name, 3 + i, 0.0) for i, (p, name) in enumerate(zip(prompts, names, strict=True))]
    batch, jobs = Batch(model), [Job(r, t.append, words, r.max_tokens) for r, t in zip(asked, told, strict=True)]
    batch.enter(jobs[:3])
    batch.step()
    batch.enter(jobs[3:])
    while batch.jobs:
        batch.step()
    batch.clear()
    for one, chunks, text in zip(jobs, told, wanted, strict=True):
        assert text.startswith("".join(each.text for each in chunks)) and one.generated
