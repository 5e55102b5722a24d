"""The engine: whatever is decoded together, every request gets what it would have got alone."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace

import pytest
import torch

import luthier as lt
from luthier.core.adapters.attach import state_of
from luthier.core.contracts.component import find
from luthier.core.errors import LuthierError
from luthier.engine.engine import Engine
from luthier.engine.request import Busy, Chunk, Request
from support import tiny
from support.architectures import ARCHITECTURES, decoding_forms

DECODERS = [name for name, each in ARCHITECTURES.items() if each.kind == "decoder"]
SINGLE = ("mixtral", "qwen3_moe", "bloom")
"""Models that transformers does not run in float64: grouped products of experts, BLOOM's mask in a float32 softmax."""
PROMPTS = ["ab", "the quick brown fox jumps", "0123456789", "x", "12+34=", "lorem ipsum dolor sit amet"]


def build(name: str = "llama", dtype: torch.dtype | None = None):
    made = ARCHITECTURES[name].build(dtype=dtype or (torch.float32 if name in SINGLE else torch.float64))
    made.generation_config.eos_token_id = 2
    return made


def saved(folder, model_name: str, form: str, keys: str = "ab", **settings) -> dict[str, str]:
    """Adapters of one form with different weights, as folders."""
    found = {}
    for seed, key in enumerate(keys):
        model = lt.attach(build(model_name), find("forms", form)(**settings), name=key)  # type: ignore[arg-type]
        draw = torch.Generator().manual_seed(seed)
        for parameter in lt.trainable(model).values():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
        found[key] = str(lt.save(model, folder / key))
    return found


@dataclass
class Answer:
    """What came of a request."""

    chunks: list[Chunk] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def __call__(self, chunk: Chunk) -> None:
        assert not self.done.is_set(), "nothing may come behind the end"
        self.chunks.append(chunk)
        if chunk.finish is not None:
            self.done.set()

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def ids(self) -> list[int]:
        return [token.id for chunk in self.chunks for token in chunk.tokens]

    @property
    def finish(self) -> str | None:
        return self.chunks[-1].finish if self.chunks else None


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(tiny.tokenizer().encode(text))


def asked(text: str, adapter: str | None = None, **settings) -> Request:
    return Request(ids_of(text), adapter, **{"temperature": 0, "max_tokens": 12, "logprobs": 0, **settings})


def served(engine: Engine, *waves: list[Request], rounds: int = 3) -> list[Answer]:
    """The answers to requests that come in waves, with some rounds between them."""
    answers, worker = [], engine._worker
    for wave in waves:
        for request in wave:
            answers.append(Answer())
            engine.submit(request, answers[-1])
        for _ in range(rounds):
            worker.round()
    while worker.live.total():
        worker.round()
    return answers


def alone(model_name: str, request: Request, adapters: dict[str, str], model=None) -> list[int]:
    """The ids that transformers' own generate gives."""
    model = model or build(model_name)
    if request.adapter is not None:
        lt.load(model, adapters[request.adapter])
    ids = torch.tensor([request.prompt])
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_tokens, do_sample=False
    )
    return out[0, ids.shape[1] :].tolist()


def mixed_waves() -> list[list[Request]]:
    """Prompts of any length, adapters of any row, answers that end at different times."""
    names = ["a", None, "b", "a", "b", None]
    every = [asked(p, n, max_tokens=4 + 3 * i) for i, (p, n) in enumerate(zip(PROMPTS, names, strict=True))]
    return [every[:3], every[3:4], every[4:]]


def same_as_alone(model_name: str, adapters: dict[str, str], **settings) -> None:
    engine = Engine(build(model_name), tiny.tokenizer(), adapters=adapters, **settings)
    waves = mixed_waves()
    answers = served(engine, *waves)
    models = {None: build(model_name)} | {key: lt.load(build(model_name), each) for key, each in adapters.items()}
    for request, answer in zip([request for wave in waves for request in wave], answers, strict=True):
        by_itself = replace(request, adapter=None)
        assert answer.ids == alone(model_name, by_itself, {}, models[request.adapter]), answer.chunks[-1].error
        assert answer.finish == ("stop" if answer.ids[-1] == 2 else "length")
    assert engine.statistics().running == 0
    engine.close()


@pytest.mark.parametrize("form", decoding_forms())
def test_rows_of_any_form_are_what_they_are_alone(form, tmp_path):
    same_as_alone("qwen2", saved(tmp_path, "qwen2", form))  # it has biases, for the forms on those


def test_rows_name_the_tasks_of_an_adapter_that_routes_by_them(tmp_path):
    """Mixed with LoRA and the base; what is asked without a task, or of an unknown one, is refused."""
    torch.manual_seed(1)
    folders = saved(tmp_path, "qwen2", "mhr", keys="m", tasks=("sum", "sort"), rank=2, skills=3)
    folders |= saved(tmp_path, "qwen2", "lora", keys="b")
    engine = Engine(build("qwen2"), tiny.tokenizer(), adapters=folders)
    assert engine.adapters() == ["m:sum", "m:sort", "b"] and engine.statistics().adapters == 2
    asking = ["m:sort", None, "m:sum", "b", "m:sort", "m:sum"]
    waves = [asked(p, n, max_tokens=4 + 3 * i) for i, (p, n) in enumerate(zip(PROMPTS, asking, strict=True))]
    answers = served(engine, waves[:2], waves[2:4], waves[4:])
    for request, answer in zip(waves, answers, strict=True):
        name, _, task = (request.adapter or "").partition(":")
        model = lt.load(build("qwen2"), folders[name]) if name else build("qwen2")
        ids = torch.tensor([request.prompt])
        given = {"max_new_tokens": request.max_tokens, "do_sample": False} | ({"tasks": task} if task else {})
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **given)
        assert answer.ids == out[0, ids.shape[1] :].tolist()
    for wrong in ("m", "m:max", "b:sum"):
        with pytest.raises(LuthierError, match="no adapter named"):
            engine.submit(asked("x", wrong), Answer())
    engine.unload("m:sum")
    assert engine.adapters() == ["b"]
    engine.close()


def test_edits_at_several_positions_in_one_adapter(tmp_path):
    same_as_alone("llama", saved(tmp_path, "llama", "loreft", positions="f2+l3", rank=4), rows=4)


def test_edits_behind_an_invocation(tmp_path):
    """Prompts of a batch have it at other places, several times or not at all, and leave at other steps."""
    one, quick = ids_of("1")[-1], ".".join(map(str, ids_of("quick")[-5:]))
    folders = saved(tmp_path, "llama", "lora", keys="a", positions=f"from:{one}")
    folders |= saved(tmp_path, "llama", "lora", keys="b", positions=f"from:{one},from:{quick}")
    same_as_alone("llama", folders, rows=4)


@pytest.mark.parametrize("model_name", DECODERS)
def test_rows_of_any_decoder_are_what_they_are_alone(model_name, tmp_path):
    same_as_alone(model_name, saved(tmp_path, model_name, "lora"), rows=4)  # so that some wait


def test_rows_join_and_leave_for_long():
    """Buffers are filled, given up and grown many times over."""
    draw = torch.Generator().manual_seed(3)
    numbers = torch.randint(1, 90, (24, 2), generator=draw).tolist()
    waves = [[asked("a" * max(1, n // 2) + "b", max_tokens=m)] for n, m in numbers]
    engine, model = Engine(build(), tiny.tokenizer(), rows=5), build()
    for (request,), answer in zip(waves, served(engine, *waves, rounds=7), strict=True):
        assert answer.ids == alone("llama", request, {}, model)


def test_a_model_that_cannot_share_a_batch_is_refused():
    from transformers import MambaConfig, MambaForCausalLM

    mamba = MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(LuthierError, match="recurrent state"):
        Engine(mamba, tiny.tokenizer())
    with pytest.raises(LuthierError, match="encoder-decoder"):
        Engine(ARCHITECTURES["t5"].build(), tiny.tokenizer())
    with pytest.raises(LuthierError, match="does not generate"):
        Engine(ARCHITECTURES["bert"].build(), tiny.tokenizer())
    with pytest.raises(LuthierError, match="carries adapters"):
        Engine(lt.attach(build(), lt.LoRA()), tiny.tokenizer())


@pytest.fixture
def engine():
    made = Engine(build(dtype=torch.float32), tiny.tokenizer(), rows=4, waiting=2)
    yield made
    made.close()


def test_a_seed_gives_the_same_text_in_any_company(engine):
    one = asked("abc", temperature=1.3, top_p=0.9, seed=7, max_tokens=20)
    (lonely,) = served(engine, [one])
    others = [asked(p, temperature=2.0, seed=i, top_p=0.5 + i / 8) for i, p in enumerate(PROMPTS[:3])]
    for order in ([one, *others], [*others, one]):
        answers = served(engine, order[:2], order[2:])
        assert answers[order.index(one)].ids == lonely.ids
    assert served(engine, [replace(one, seed=8)])[0].ids != lonely.ids


def test_greedy_rows_stay_greedy_beside_drawn_ones(engine):
    answers = served(engine, [asked("abc"), asked("abc", temperature=5.0, seed=1)])
    assert answers[0].ids == served(engine, [asked("abc")])[0].ids != answers[1].ids


def test_log_probabilities_are_the_models_own(engine):
    request = asked("hello", temperature=0.7, top_p=0.8, seed=3, logprobs=5, max_tokens=6)
    (answer,) = served(engine, [request])
    tokens = [token for chunk in answer.chunks for token in chunk.tokens]
    ids = torch.tensor([[*request.prompt, *answer.ids]])
    with torch.no_grad():
        logs = build(dtype=torch.float32)(input_ids=ids).logits[0].log_softmax(-1)
    for place, token in enumerate(tokens, len(request.prompt) - 1):
        assert token.logprob == pytest.approx(float(logs[place, token.id]), abs=1e-4)
        assert [top[0] for top in token.top] == logs[place].topk(5).indices.tolist()
        assert token.top[0][2] == pytest.approx(float(logs[place].max()), abs=1e-4)
    assert "".join(token.text for token in tokens if token.id > 3) == answer.text
    (plain,) = served(engine, [replace(request, logprobs=None)])
    assert plain.text == answer.text and not plain.ids


def test_a_stop_text_ends_the_answer_and_is_not_in_it(engine):
    (whole,) = served(engine, [asked("stop here", max_tokens=12)])
    assert len(whole.text) > 6
    stop = whole.text[3:6]
    (answer,) = served(engine, [asked("stop here", max_tokens=12, stop=("never", stop))])
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.finish == "stop" and answer.chunks[-1].generated == whole.text.index(stop) + 3


def test_a_request_that_cannot_be_served_is_refused(engine):
    wrong = {
        "no tokens": Request(()),
        "max_tokens is 0": asked("a", max_tokens=0),
        "temperature is -1": asked("a", temperature=-1.0),
        "temperature is nan": asked("a", temperature=float("nan")),
        "top_p is 0": asked("a", top_p=0.0),
        "stop text is empty": asked("a", stop=("",)),
        "logprobs is 21": asked("a", logprobs=21),
        "token id 97": Request((5, 97)),
        "token id -1": Request((-1,)),
        "have 128": asked("a" * 128),
        "no adapter named 'x'": asked("a", "x"),
    }
    for message, request in wrong.items():
        with pytest.raises(LuthierError, match=message):
            engine.submit(request, Answer())
    assert engine.statistics().waiting == 0


def test_a_full_queue_and_the_longest_answer(engine):
    answers = [Answer() for _ in range(6)]
    for answer in answers:
        engine.submit(asked("a" * 120, max_tokens=99), answer)
    with pytest.raises(Busy, match="try again"):
        engine.submit(asked("a"), Answer())
    engine.start()
    assert engine.drain(60)
    assert all(answer.finish in ("length", "stop") and len(answer.ids) <= 8 for answer in answers)
    with pytest.raises(Busy, match="shutting down"):
        engine.submit(asked("a"), Answer())
    found = engine.statistics()
    assert (found.finished, found.failed, found.running, found.waiting) == (6, 0, 0, 0)
    assert found.prompt_tokens == 720 and found.generated_tokens == sum(len(a.ids) for a in answers)


def test_cancelled_requests_leave(engine):
    stay, go, queued = Answer(), Answer(), Answer()
    engine.submit(asked("abc", max_tokens=20), stay)
    ticket = engine.submit(asked("abcd", max_tokens=100), go)
    for _ in range(4):
        engine._worker.round()
    waiting = engine.submit(asked("abc"), queued)
    waiting.cancel()
    ticket.cancel()
    while engine._worker.live.total():
        engine._worker.round()
    assert (go.finish, queued.finish, stay.finish) == ("cancelled", "cancelled", "length")
    assert 0 < len(go.ids) <= 6 and not queued.ids and len(stay.ids) == 20
    ticket.cancel()  # over already


def test_a_row_at_fault_takes_no_other_along(engine, monkeypatch):
    """Deliveries that raise, and logits that are no numbers."""
    good = served(engine, [asked("abc", max_tokens=9)])[0].ids

    def broken(chunk):
        raise ConnectionError("gone")

    real, bad, beside = engine._model.forward, Answer(), [Answer(), Answer()]

    def spoiled(*args, **kwargs):
        out = real(*args, **kwargs)
        out.logits[1] = float("nan")
        return out

    engine.submit(asked("abc", max_tokens=9), beside[0])
    engine.submit(asked("zzz", max_tokens=9), bad)
    engine.submit(asked("abc", max_tokens=9), broken)
    engine._worker.round()
    monkeypatch.setattr(engine._model, "forward", spoiled)
    engine._worker.round()
    monkeypatch.undo()
    engine.submit(asked("abc", max_tokens=9), beside[1])
    while engine._worker.live.total():
        engine._worker.round()
    assert bad.finish == "error" and "NaN" in str(bad.chunks[-1].error)
    assert [answer.ids for answer in beside] == [good, good]
    assert engine.statistics().failed == 2


def test_a_failed_step_fails_its_requests_and_the_engine_goes_on(engine, monkeypatch):
    good = served(engine, [asked("abc")])[0].ids
    lost, after = Answer(), Answer()
    engine.submit(asked("abc"), lost)
    engine._worker.round()

    def failing(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine._model, "forward", failing)
    engine._worker.round()
    monkeypatch.undo()
    assert lost.finish == "error" and lost.chunks[-1].error == "RuntimeError: out of memory"
    engine.submit(asked("abc"), after)
    while engine._worker.live.total():
        engine._worker.round()
    assert after.ids == good


def test_a_prompt_at_fault_does_not_keep_others_from_joining(engine, monkeypatch):
    real = engine._model.forward

    def failing(*args, **kwargs):
        if bool((kwargs["input_ids"] == 96).any()):
            raise RuntimeError("a bad prompt")
        return real(*args, **kwargs)

    monkeypatch.setattr(engine._model, "forward", failing)
    answers = served(engine, [asked("abc"), Request((5, 96, 7), logprobs=0), asked("abd")])
    assert [answer.finish for answer in answers] == ["length", "error", "length"]


def test_adapters_rest_until_a_row_asks_for_them(tmp_path):
    model = build()
    Engine(model, tiny.tokenizer(), adapters=saved(tmp_path, "llama", "lora", "abc")).close()
    assert not any(container.acting for container in state_of(model).containers)


def test_adapters_come_and_go_while_rows_run(tmp_path):
    folders = saved(tmp_path, "llama", "lora", "abc")
    engine = Engine(build(), tiny.tokenizer(), adapters={"a": folders["a"]}, rows=4)
    engine.start()
    long = asked("abc", "a", max_tokens=100)
    first, second = Answer(), Answer()
    engine.submit(long, first)
    engine.load("b", folders["b"])
    engine.submit(asked("abc", "b"), second)
    engine.unload("a")
    assert first.done.is_set() and first.ids == alone("llama", long, folders)
    assert engine.adapters() == ["b"] and engine.statistics().adapters == 1
    with pytest.raises(LuthierError, match="no adapter named 'a'"):
        engine.submit(long, Answer())
    with pytest.raises(LuthierError, match="loaded already"):
        engine.load("b", folders["c"])
    with pytest.raises(LuthierError, match="cannot name"):
        engine.load("../b", folders["c"])
    with pytest.raises(LuthierError, match="holds no adapter"):
        engine.load("d", tmp_path / "nothing")
    second.done.wait(60)
    engine.unload("b")
    again = Answer()
    engine.load("a", folders["a"])
    engine.submit(long, again)
    assert again.done.wait(60) and again.ids == first.ids
    engine.close()
    with pytest.raises(Busy, match="shutting down"):
        engine.submit(long, Answer())


@pytest.mark.parametrize("form", ["lora", "dora", "loreft"])
def test_an_adapter_leaves_while_others_run_beside_it(form, tmp_path):
    """Adapters of several ranks; those that stay act as they did, and those that come later too."""
    folders = saved(tmp_path, "llama", form, "ab", rank=2) | saved(tmp_path, "llama", form, "cd", rank=5)
    engine = Engine(build(), tiny.tokenizer(), adapters={key: folders[key] for key in "abc"}, rows=6)
    requests = [asked(p, n, max_tokens=60) for p, n in zip(PROMPTS, ["a", "b", "c", None, "b", "c"], strict=True)]
    requests[0] = replace(requests[0], max_tokens=5)
    answers = [Answer() for _ in requests]
    for request, answer in zip(requests, answers, strict=True):
        engine.submit(request, answer)
    engine.start()
    engine.unload("a")
    engine.load("d", folders["d"])
    requests.append(asked("late", "d", max_tokens=20))
    answers.append(Answer())
    engine.submit(requests[-1], answers[-1])
    assert engine.drain(60)
    engine.close()
    for request, answer in zip(requests, answers, strict=True):
        assert answer.ids == alone("llama", request, folders)


def test_unloading_refuses_new_requests(tmp_path):
    folders = saved(tmp_path, "llama", "lora", "a")
    engine = Engine(build(), tiny.tokenizer(), adapters=folders)
    answer = Answer()
    engine.submit(asked("abc", "a"), answer)
    leaving = threading.Thread(target=engine.unload, args=["a"])
    leaving.start()
    while engine.adapters():
        pass
    with pytest.raises(LuthierError, match="being unloaded"):
        engine.submit(asked("abc", "a"), Answer())
    engine.start()
    leaving.join(60)
    assert answer.finish == "length" and not leaving.is_alive()
    engine.close()


def test_closing_ends_what_is_left():
    engine = Engine(build(), tiny.tokenizer(), rows=1)
    answers = [Answer(), Answer()]
    for answer in answers:
        engine.submit(asked("abc", max_tokens=120), answer)
    engine.start()
    engine.close()
    assert all(answer.done.is_set() and answer.finish in ("cancelled", "stop") for answer in answers)
    with pytest.raises(LuthierError, match="make a new one"):
        engine.start()


def test_many_threads_ask_at_once(tmp_path):
    folders = saved(tmp_path, "llama", "lora", "abc")
    engine = Engine(build(), tiny.tokenizer(), adapters=folders, rows=6)
    engine.start()
    requests = [asked(p, n, max_tokens=8) for p in PROMPTS for n in (None, *folders)]
    answers = [Answer() for _ in requests]

    def ask(own: range) -> None:
        for i in own:
            engine.submit(requests[i], answers[i])

    threads = [threading.Thread(target=ask, args=[range(start, len(requests), 4)]) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.drain(100)
    engine.close()
    for request, answer in zip(requests[::5], answers[::5], strict=True):
        assert answer.ids == alone("llama", request, folders)


# --- the same bits in any company ---


def bits(engine: Engine, requests: list[Request]) -> list[list[float]]:
    return [[t.logprob for p in a.chunks for t in p.tokens] for a in served(engine, requests)]


@pytest.mark.parametrize("form", ["lora", "dora", "loreft"])
def test_deterministic_rows_have_the_same_bits_alone_and_in_a_crowd(form, tmp_path):
    adapters = saved(tmp_path, "llama", form)
    waves = [asked(text, name, max_tokens=9 + i) for i, text in enumerate(PROMPTS) for name in (None, "a", "b")]
    crowd, single = (
        Engine(build().float(), tiny.tokenizer(), adapters=adapters, rows=32, deterministic=True) for _ in range(2)
    )
    together = bits(crowd, waves)
    assert together == [bits(single, [each])[0] for each in waves]
    assert all(len(found) > 5 for found in together)


def test_deterministic_rows_fail_and_leave_one_by_one(engine, monkeypatch):
    made = Engine(build(), tiny.tokenizer(), rows=4, deterministic=True)
    answers = served(made, [asked(text, max_tokens=3 + i) for i, text in enumerate(PROMPTS)])
    assert [answer.finish for answer in answers] == ["length"] * len(PROMPTS)
    assert [len(answer.ids) for answer in answers] == [3 + i for i in range(len(PROMPTS))]


def test_all_places_are_reserved_at_once_or_none(engine):
    many = [asked("ab")] * 3
    made = Engine(build(), tiny.tokenizer(), rows=1, waiting=3)
    with pytest.raises(LuthierError, match="5 answers at once, and this engine has 4 places") as error:
        made.submit_all([asked("ab")] * 5, [Answer()] * 5)
    assert not isinstance(error.value, Busy)
    made.submit_all(many, [Answer() for _ in many])
    with pytest.raises(Busy, match="3 of 4 places are taken, and 2 are wanted"):
        made.submit_all(many[:2], [Answer(), Answer()])
    assert made.statistics().waiting == 3
    made.submit(many[0], Answer())
    assert made.statistics().waiting == 4
