"""Clients and server together: what is aggregated, what one client is, what a kill leaves, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import luthier as lt
from luthier import data, models
from luthier.core.contracts.aggregation import Aggregation, factors
from luthier.core.contracts.component import find, names
from luthier.core.numerics.delta import Delta
from luthier.evaluating import evaluate
from luthier.federating import Federation, client, server
from luthier.federating import folder as folders
from luthier.federating.change import Change, fill, folded, taken
from luthier.federating.command import command
from luthier.federating.prepare import Plan, planned
from luthier.federating.run import carry_out
from luthier.federating.spec import REFUSED, UNREAD
from luthier.training import Run, Training, train
from luthier.training.session import load

SHORT = Training(epochs=1, batch=4, lr=1e-2, eval_fraction=0.2)
FORM = lt.LoRA(rank=4, alpha=8.0)
AGGREGATIONS = names("aggregations")


def made(name: str) -> Aggregation:
    found = find("aggregations", name)()
    assert isinstance(found, Aggregation)
    return found


def run_of(model: str, source: str, out: Path, **changes) -> Run:
    return replace(Run(model, source, FORM, out=str(out), training=SHORT), **changes)


def ground(plan: Plan):
    loaded = load(plan.run, plan.prepared)
    return loaded, server.initial(plan.run, plan.method, plan.prepared, loaded, plan.ranks)


def sent_in_round(plan: Plan, loaded, held: Change, number: int) -> list[client.Sent]:
    return [
        client.fit(
            plan.run,
            plan.method,
            client.rows_of(plan.prepared, part),
            loaded,
            held,
            rank,
            client.seed_of(plan.run, number, each, plan.clients),
        )
        for each, (part, rank) in enumerate(zip(plan.parts, plan.ranks, strict=True))
    ]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7, 8, 9]])).logits


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_a_run_fills_its_folder_and_learns(llama, additions, tmp_path, name, drawn):
    done = lt.federate(
        llama, additions, aggregation=name, form=FORM, clients=3, rounds=2, out=str(tmp_path / "run"),
        training=replace(SHORT, epochs=2), progress=False,
    )  # fmt: skip
    found = {path.name for path in done.folder.iterdir() if not path.name.startswith(".")}
    assert found == {"federation.json", "metrics.jsonl", "federation.png", "state", "adapter", "README.md"}
    lines = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == done.rounds and [line["round"] for line in lines] == [0, 1, 2]
    assert lines[2]["eval_loss"] < lines[0]["eval_loss"] - 0.1
    assert set(lines[1]["clients"]) == {"0", "1", "2"}
    assert (done.folder / "federation.png").stat().st_size > 10_000
    card = (done.adapter / "README.md").read_text()
    assert made(name).equation() in card and "dealt by iid: 10 to 11" in card and f"{lines[2]['eval_loss']:.4f}" in card


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_one_client_is_central_training(llama, additions, tmp_path, name):
    """A round of one client takes the very steps of `train`."""
    settings = replace(SHORT, steps=7, eval_fraction=0.0)
    central = train(run_of(llama, additions, tmp_path / "central", training=settings), progress=False)
    wanted = taken(central.model, "default").low
    done = lt.federate(
        llama, additions, aggregation=name, form=FORM, clients=1, rounds=1, out=str(tmp_path / "run"),
        training=settings, progress=False,
    )  # fmt: skip
    base = models.load(llama).model
    lt.load(base, done.adapter)
    found = taken(base, "default").low
    assert found.keys() == wanted.keys()
    for path, delta in wanted.items():
        size = delta.dense().double().norm()
        apart = float((found[path].dense() - delta.dense()).double().norm() / size)
        assert apart < 2e-5, path  # an SVD in float32: 1e-6 to 8e-6, depending on the processor
    last = [loss for _, loss in central.losses][-1:]
    assert done.rounds[1]["train_loss"] == pytest.approx(sum(last), rel=1e-6)


def test_the_server_holds_the_mean_of_the_products_of_mixed_ranks(llama, additions, tmp_path):
    """Σ p_k s_k B_k A_k over real clients, with p_k by rows; in the second round it is added to the first."""
    plan = planned(run_of(llama, additions, tmp_path), lt.FLoRA(), Federation(clients=3, ranks="2,4,8"))
    loaded, held = ground(plan)
    assert not held.low  # the first round starts on the base
    total: dict[str, torch.Tensor] = {}
    for number in (1, 2):
        sent = sent_in_round(plan, loaded, held, number)
        assert [each.change.low["model.layers.0.self_attn.q_proj"].rank for each in sent] == [2, 4, 8]
        held = server.aggregated(plan.method, held, [each.change for each in sent], [each.rows for each in sent])
        rows = [len(part) for part in plan.parts]
        for path, found in held.low.items():
            pairs = [[t.double() for t in factors(each.change.low[path])] for each in sent]
            mean = torch.stack([n / sum(rows) * b @ a for n, (b, a) in zip(rows, pairs, strict=True)]).sum(0)
            total[path] = mean + total.get(path, torch.zeros(1))
            assert float((found.dense().double() - total[path]).norm() / total[path].norm()) < 1e-6
    assert {delta.rank for delta in held.low.values()} == {16, 28}  # two rounds of 14, at most the width


def test_averaged_factors_miss_what_the_clients_learnt(llama, additions, tmp_path):
    """The same clients at one rank: the average of the factors is another change than the mean of the products."""
    plan = planned(run_of(llama, additions, tmp_path), lt.FedIT(), Federation(clients=3))
    loaded, held = ground(plan)
    for number in (1, 2):  # in the first round clients' A are near their common start
        sent = sent_in_round(plan, loaded, held, number)
        rows = [each.rows for each in sent]
        exact = server.aggregated(lt.FLoRA(), Change(), [each.change for each in sent], rows)
        held = server.aggregated(plan.method, held, [each.change for each in sent], rows)
    path = "model.layers.0.self_attn.q_proj"
    wanted = exact.low[path].dense()
    assert float((held.low[path].dense() - wanted).norm() / wanted.norm()) > 1e-2


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_the_base_is_bit_equal_after_a_client(llama, additions, tmp_path, name):
    plan = planned(run_of(llama, additions, tmp_path), made(name), Federation(clients=2))
    loaded, held = ground(plan)
    before = {key: tensor.clone() for key, tensor in loaded.model.state_dict().items()}
    kind, keys = type(loaded.model), set(loaded.model.state_dict())
    sent = sent_in_round(plan, loaded, held, 1)
    held = server.aggregated(plan.method, held, [each.change for each in sent], [1, 1])
    sent_in_round(plan, loaded, held, 2)
    assert type(loaded.model) is kind and set(loaded.model.state_dict()) == keys
    assert all(torch.equal(tensor, before[key]) for key, tensor in loaded.model.state_dict().items())


@pytest.mark.parametrize("name", ["flora", "flexlora"])
def test_the_adapter_is_the_model_that_was_measured(bert, letters, tmp_path, name):
    """Loaded on the base, it scores as the last round did; a new head comes along."""
    run = run_of(bert, letters, tmp_path / "run", training=replace(SHORT, epochs=4))
    done = carry_out(run, made(name), Federation(clients=3, rounds=3, ranks="2,4,8"), progress=False)
    spec = json.loads((done.adapter / "adapter.json").read_text())
    loaded = models.load(bert, task="classification", labels=spec["measured"]["labels"])
    lt.load(loaded.model, done.adapter)
    _, held = data.split(data.load(letters), n=18, seed=0)
    found = evaluate(loaded.model, loaded.processor, held, progress=False)
    assert found.metrics["accuracy"] == done.rounds[-1]["accuracy"]
    assert found.loss == pytest.approx(done.rounds[-1]["eval_loss"], rel=1e-5)
    assert done.rounds[-1]["accuracy"] > done.rounds[0]["accuracy"]
    assert spec["measured"]["federated"]["rows"] == [24, 24, 24]


def test_new_heads_are_averaged_by_rows(bert, letters, tmp_path):
    federation = Federation(clients=3, split="dirichlet", concentration=0.3)
    plan = planned(run_of(bert, letters, tmp_path), lt.FLoRA(), federation)
    loaded, held = ground(plan)
    sent = sent_in_round(plan, loaded, held, 1)
    rows = [each.rows for each in sent]
    assert len(set(rows)) > 1
    after = server.aggregated(plan.method, held, [each.change for each in sent], rows)
    assert "classifier.weight" in after.whole
    for path, tensor in after.whole.items():
        wanted = sum(n / sum(rows) * each.change.whole[path].double() for n, each in zip(rows, sent, strict=True))
        assert torch.allclose(tensor.double(), torch.as_tensor(wanted), rtol=1e-5, atol=1e-7)


def test_a_client_of_a_larger_rank_starts_the_rest_afresh(llama):
    """The clients of a round may all be of smaller ranks; the next one's further directions can still learn."""
    model = models.load(llama).model
    lt.attach(model, FORM)
    before = taken(model, "default").low
    held = {
        path: Delta.low_rank(torch.randn(low.shape[0], 2), torch.randn(2, low.shape[1])) for path, low in before.items()
    }
    fill(model, "default", Change(held))
    for path, low in taken(model, "default").low.items():
        b, a = factors(low)
        assert torch.allclose(low.dense(), held[path].dense(), atol=1e-5)
        assert not b[:, 2:].any() and torch.equal(a[2:], factors(before[path])[1][2:]) and bool(a[2:].any())


def test_folded_is_the_change_in_the_weights(llama):
    model = models.load(llama).model
    path = "model.layers.1.mlp.up_proj"
    weight = model.get_submodule(path).weight
    change = Change({path: Delta.low_rank(torch.randn(weight.shape[0], 2), torch.randn(2, weight.shape[1]))})
    before, output, pointer = weight.detach().clone(), logits(model), weight.data_ptr()
    with folded(model, change):
        assert torch.allclose(weight - before, change.low[path].dense(), atol=1e-6)
        assert not torch.allclose(logits(model), output)
    assert weight.data_ptr() == pointer and torch.equal(weight, before) and torch.equal(logits(model), output)


class Stop(Exception):
    """Stands for a kill."""


def killed_after(monkeypatch, clients: int) -> list[int]:
    """Lets that many clients train, then stops; returns the list that counts them."""
    fit, counted = client.fit, []

    def counting(*given):
        if len(counted) == clients:
            raise Stop
        counted.append(given[5])
        return fit(*given)

    monkeypatch.setattr(client, "fit", counting)
    return counted


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter.safetensors")


def figures(done) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in done.rounds]


@pytest.mark.parametrize("name", ["flora", "zero_padding"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(llama, additions, tmp_path, monkeypatch, name):
    federation = Federation(clients=3, rounds=3, ranks="2,4,8", fraction=0.7)
    alone = carry_out(run_of(llama, additions, tmp_path / "alone"), made(name), federation, progress=False)
    run = run_of(llama, additions, tmp_path / "killed")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        killed_after(patch, 3)  # two clients a round: in the middle of the second
        carry_out(run, made(name), federation, progress=False)
    with monkeypatch.context() as patch:
        counted = killed_after(patch, 99)
        done = carry_out(run, made(name), federation, resume=True, progress=False)
    assert len(counted) == 3
    assert figures(done) == figures(alone)
    found, wanted = tensors(done.folder), tensors(alone.folder)
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in found)


def test_rounds_may_be_added(llama, additions, tmp_path):
    runs = [run_of(llama, additions, tmp_path / name) for name in ("whole", "parts")]
    whole = carry_out(runs[0], lt.FLoRA(), Federation(clients=2, rounds=2), progress=False)
    carry_out(runs[1], lt.FLoRA(), Federation(clients=2, rounds=1), progress=False)
    added = carry_out(runs[1], lt.FLoRA(), Federation(clients=2, rounds=2), resume=True, progress=False)
    assert figures(added) == figures(whole)
    assert all(torch.equal(t, tensors(whole.folder)[key]) for key, t in tensors(added.folder).items())


def test_the_same_seed_gives_the_same_bits_and_another_one_others(llama, additions, tmp_path):
    federation = Federation(clients=2, rounds=1)
    runs = [run_of(llama, additions, tmp_path / name) for name in ("one", "again")]
    runs.append(run_of(llama, additions, tmp_path / "other", training=replace(SHORT, seed=1)))
    one, again, other = (carry_out(run, lt.FLoRA(), federation, progress=False) for run in runs)
    assert figures(one) == figures(again) != figures(other)


def test_clients_of_a_round_are_drawn_by_the_seed(llama, additions, tmp_path):
    plan = planned(run_of(llama, additions, tmp_path), lt.FLoRA(), Federation(clients=8, fraction=0.5))
    drawn = [plan.taking_part(number) for number in range(1, 9)]
    assert all(len(each) == 4 == len(set(each)) for each in drawn) and len(set(map(tuple, drawn))) > 1
    assert drawn == [plan.taking_part(number) for number in range(1, 9)]
    assert {client for each in drawn for client in each} == set(range(8))


def test_rows_are_divided_by_class_and_by_column(bert, letters, tmp_path):
    run = run_of(bert, letters, tmp_path)
    by_column = planned(run, lt.FLoRA(), Federation(split="column", column="hospital"))
    raw = dict(data.read(letters).rows)
    for part, wanted in zip(by_column.parts, ("h0", "h1", "h2", "h3"), strict=True):
        assert {raw[by_column.prepared.train[place]["row"]]["hospital"] for place in part} == {wanted}
    skewed = planned(run, lt.FLoRA(), Federation(clients=3, split="dirichlet", concentration=0.1))
    kinds = [[skewed.prepared.train[place]["labels"] for place in part] for part in skewed.parts]
    assert max(max(each.count(k) / len(each) for k in range(3)) for each in kinds) > 0.6
    with pytest.raises(lt.LuthierError, match="no column 'hospitl'; did you mean 'hospital'"):
        planned(run, lt.FLoRA(), Federation(split="column", column="hospitl"))


def refused(run: Run, text: str, method=None, federation: Federation | None = None, **more) -> None:
    with pytest.raises(lt.LuthierError, match=text):
        carry_out(run, method or lt.FLoRA(), federation or Federation(clients=2, rounds=1), progress=False, **more)


def test_bad_input_is_refused_before_work(llama, additions, tmp_path, monkeypatch):
    monkeypatch.setattr("luthier.models.load", lambda *_, **__: pytest.fail("the weights were loaded"))
    run = run_of(llama, additions, tmp_path / "run")
    refused(run, "ranks are 2, 4", lt.FedIT(), Federation(clients=2, ranks="2,4"))
    refused(replace(run, form=lt.WeGeFT(rank=2)), "wegeft has none")
    refused(replace(run, form=replace(FORM, share="type")), "shares them between layers")
    refused(replace(run, training=replace(SHORT, quantize="int8")), "must be whole")
    refused(replace(run, budget="1%"), "budget is chosen from all rows")
    for objective in (lt.DPO(), lt.KTO(), lt.Distill()):
        refused(replace(run, objective=objective), "goes by the base as it was before training")
    refused(run, "32 rows do not do for 99 clients", federation=Federation(clients=99))
    refused(run, "choose one", resume=True, overwrite=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    refused(run, "something else than a federated run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_places_that_are_no_linear_layers_are_refused(llama, additions, tmp_path):
    refused(run_of(llama, additions, tmp_path / "run", where="embeddings"), "not a linear layer")


def test_another_run_is_not_gone_on_with(llama, additions, tmp_path):
    run = run_of(llama, additions, tmp_path / "run")
    carry_out(run, lt.FLoRA(), Federation(clients=2, rounds=1), progress=False)
    refused(run, "holds a federated run already")
    refused(replace(run, training=replace(SHORT, lr=1e-3)), "run.training.lr is 0.001", resume=True)
    refused(run, "federation.clients is 3", federation=Federation(clients=3, rounds=1), resume=True)
    refused(run, "aggregation.name is 'flexlora'", lt.FlexLoRA(), resume=True)
    carry_out(run, lt.FlexLoRA(), Federation(clients=2, rounds=1), overwrite=True, progress=False)


@pytest.mark.parametrize("changed", ["weights", "template"])
def test_a_run_goes_on_over_the_same_base_alone(llama, additions, tmp_path, changed):
    base = tmp_path / "base"
    shutil.copytree(llama, base)
    run = run_of(str(base), additions, tmp_path / "run")
    done = carry_out(run, lt.FLoRA(), Federation(clients=2, rounds=1), progress=False)
    again = carry_out(run, lt.FLoRA(), Federation(clients=2, rounds=1), resume=True, progress=False)
    assert figures(done) == figures(again)
    if changed == "weights":
        held = load_file(base / "model.safetensors")
        held["model.norm.weight"] = held["model.norm.weight"] * 1.001
        save_file(held, base / "model.safetensors", {"format": "pt"})
        told = "not the base that the federated run"
    else:
        template = "{% for m in messages %}[{{ m['content'] }}{{ eos_token }}]{% endfor %}"
        (base / "chat_template.jinja").write_text(template, encoding="utf-8")
        told = "tokenizer or the chat template .* has changed"
    refused(run, told, federation=Federation(clients=2, rounds=2), resume=True)


def test_a_change_travels_and_damage_is_told():
    change = Change({"a.b": Delta.low_rank(torch.randn(4, 2), torch.randn(2, 3))}, {"head": torch.randn(5)})
    back = Change.of(change.tensors())
    assert torch.equal(back.low["a.b"].dense(), change.low["a.b"].dense())
    assert torch.equal(back.whole["head"], change.whole["head"]) and back.numbers == 4 * 2 + 2 * 3 + 5
    for broken, text in (
        ({"B:x": torch.zeros(4, 2)}, "factors of x do not fit"),
        ({"B:x": torch.zeros(4, 2), "A:x": torch.zeros(3, 3)}, "factors of x do not fit"),
        ({"C:x": torch.zeros(1)}, "not part of a change"),
        ({"whole:x": torch.tensor([float("nan")])}, "NaN"),
    ):
        with pytest.raises(lt.LuthierError, match=text):
            Change.of(broken)


def test_clients_that_changed_other_places_are_refused():
    def change(path: str, width: int) -> Change:
        return Change({path: Delta.low_rank(torch.randn(4, 2), torch.randn(2, width))})

    for odd in (change("b", 3), change("a", 5)):
        with pytest.raises(lt.LuthierError, match="client 2 of 2 changed other places"):
            server.aggregated(lt.FLoRA(), Change(), [change("a", 3), odd], [1, 1])


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
def test_beyond_full_rank_the_change_is_the_same(shape):
    delta = Delta.low_rank(torch.randn(shape[0], 9).double(), torch.randn(9, shape[1]).double())
    found = server._at_most_full(delta)
    assert found.rank == 4 and torch.allclose(found.dense(), delta.dense(), rtol=1e-14)


def test_the_command_repeats_the_run(llama, additions, tmp_path):
    import shlex

    from luthier.cli.parse import parse

    training = replace(SHORT, epochs=3.0, schedule="cosine", truncate=True)
    cases: Sequence = (
        (run_of(llama, additions, tmp_path / "a"), lt.FLoRA(), Federation(clients=3, ranks="2,4", fraction=0.5)),
        (
            run_of(llama, additions, tmp_path / "b", training=training, where="q_proj", update=lt.LoRAPlus()),
            lt.FedIT(),
            Federation(split="column", column="hospital", rounds=9),
        ),
    )
    for each in cases:
        words = shlex.split(command(*each))
        assert words[:2] == ["luthier", "federate"]
        parsed = parse(words[1:])
        assert parsed is not None
        assert parsed[0].resolved(parsed[1]) == each  # type: ignore[attr-defined]


@pytest.mark.parametrize("rounds", [[], "0", [3], [{}], [{"round": "0"}], [{"round": 1}], [{"round": 0, "mse": "x"}]])
def test_damaged_rounds_are_told(rounds, tmp_path):
    (tmp_path / "state").mkdir()
    save_file({}, tmp_path / "state" / "change.safetensors")
    (tmp_path / "state" / "state.json").write_text(json.dumps({"rounds": rounds}))
    with pytest.raises(lt.LuthierError, match=r"state\.json is damaged"):
        folders.read_state(tmp_path)


def test_a_damaged_answer_of_a_client_is_told(tmp_path):
    path = folders.sent_by(tmp_path, 1, 0)
    path.parent.mkdir(parents=True)
    save_file({}, path)
    with pytest.raises(lt.LuthierError, match="is damaged"):
        folders.kept(tmp_path, 1, 0)


SET = {"pack": True, "eval_every": 2, "patience": 2, "save_every": 2, "keep": 3, "noise_scale": True,
       "report_to": "tensorboard", "cache_frozen": "on",
       "quantize": "int8", "shard": True, "best": "loss"}  # fmt: skip


@pytest.mark.parametrize("name", [*UNREAD, *REFUSED])
def test_a_setting_that_no_client_reads_is_refused(llama, additions, tmp_path, name):
    needed = {"patience": {"best": "loss"}, "noise_scale": {"accumulate": 2}}.get(name, {})
    training = replace(SHORT, **needed, **{name: SET[name]})
    with pytest.raises(lt.LuthierError, match=name):
        lt.federate(llama, additions, form=FORM, clients=2, training=training, out=str(tmp_path / "run"))
    assert not (tmp_path / "run" / "federation.json").exists()


def test_the_command_line_does_not_offer_it(capsys):
    from luthier.cli import main

    main(["federate", "--help"])
    told = capsys.readouterr().out
    assert "--lr" in told and not [name for name in (*UNREAD, *REFUSED) if f"--{name.replace('_', '-')}" in told]
