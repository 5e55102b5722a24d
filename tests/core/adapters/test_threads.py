"""Switches belong to a model or a thread: two threads with two models do not meet."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import luthier as lt
import luthier.kernels.lora as kernel
from luthier.core.adapters.control import RowAssignment
from luthier.core.adapters.pass_ import Pass
from luthier.core.contracts.kernel import on, reference_implementation
from luthier.core.first_import import NOISY, quiet_imports
from support.architectures import ARCHITECTURES


def build(form=None, name: str = "llama"):
    model = lt.attach(ARCHITECTURES[name].build(), form or lt.LoRA(rank=4))
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.train()


def together(*works: Callable[[threading.Barrier], object]) -> list:
    """What each returns, run in a thread of its own; they meet wherever they wait at the barrier."""
    barrier = threading.Barrier(len(works), timeout=60)
    with ThreadPoolExecutor(len(works)) as pool:
        return [each.result() for each in [pool.submit(work, barrier) for work in works]]


def test_one_is_inside_plain_and_the_other_not(monkeypatch):
    models, inputs = (build(), build()), ARCHITECTURES["llama"].inputs(batch=2)
    by_kernel: list[int] = []
    for name in ("linear", "linears"):
        run = getattr(kernel, name)
        monkeypatch.setattr(kernel, name, lambda *a, run=run: (by_kernel.append(threading.get_ident()), run(*a))[1])

    def reference(barrier):
        with reference_implementation():
            barrier.wait()  # both contexts are as they will be
            found = models[0](**inputs).logits
            barrier.wait()
        return threading.get_ident(), found

    def fast(barrier):
        barrier.wait()
        found = models[1](**inputs).logits
        barrier.wait()
        return threading.get_ident(), found

    (inside, plainly), (outside, quickly) = together(reference, fast)
    assert set(by_kernel) == {outside} and inside != outside
    with reference_implementation():
        assert torch.equal(models[0](**inputs).logits, plainly)
    assert torch.equal(models[1](**inputs).logits, quickly)


def test_rows_prompts_and_switches_are_of_one_model():
    models, inputs = (build(), build()), ARCHITECTURES["llama"].inputs(batch=2)
    for model in models:
        lt.attach(model, lt.LoRA(rank=2), name="second").eval()
    expected = [model(**inputs).logits for model in models]

    def switched(barrier):
        with lt.rows(models[0], ["default", None]), torch.no_grad():
            barrier.wait()
            models[0](**inputs)
            barrier.wait()
        lt.use(models[0], "second")

    def other(barrier):
        barrier.wait()
        found = models[1](**inputs).logits
        barrier.wait()
        return found

    assert torch.equal(together(switched, other)[1], expected[1])


CONTEXTS = {
    "rows": lambda model: lt.rows(model, ["default", None]),
    "disabled": lt.disabled,
    "prompt": lambda model: lt.prompt(model, 2),
    "tasks": lambda model: lt.tasks(model, "any"),
    "watched": lt.watched,
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_context_has_the_model_for_its_thread_and_others_are_refused(name):
    """Nobody gets another's rows, nor none of the adapters that another has silenced."""
    model, inputs = build().eval(), ARCHITECTURES["llama"].inputs(batch=2)
    with torch.no_grad():
        expected = model(**inputs).logits

    def inside(barrier):
        with CONTEXTS[name](model), torch.no_grad():
            barrier.wait()
            with lt.disabled(model, []):  # contexts of one thread nest
                found = model(**inputs).logits
            barrier.wait()
        barrier.wait()
        return found

    def outside(barrier):
        barrier.wait()
        for act in (
            lambda: model(**inputs),
            lambda: model.generate(inputs["input_ids"], max_new_tokens=1),
            lambda: lt.disable(model),
            lambda: lt.use(model, "default"),
            lambda: lt.merge(model),
            lambda: lt.attach(model, lt.LoRA(), name="third"),
            lambda: lt.detach(model),
            lambda: lt.rows(model, [None, None]).__enter__(),
        ):
            with pytest.raises(lt.LuthierError, match=f"another thread is in {name} of this model"):
                act()
        barrier.wait()
        barrier.wait()
        with torch.no_grad():
            return model(**inputs).logits

    mine, theirs = together(inside, outside)
    assert torch.equal(theirs, expected) and [row["adapter"] for row in lt.describe(model)] == ["default"] * len(
        lt.describe(model)
    )
    assert torch.equal(mine, expected) == (name not in ("rows", "disabled"))


def test_two_threads_run_one_model_each_with_its_own_prompts():
    """Places in a prompt are of a pass: passes at the same time do not read each other's."""
    model = build(lt.LoReFT(rank=2, positions="f2+l2")).eval()
    architecture = ARCHITECTURES["llama"]
    batches = [architecture.inputs(batch=batch) for batch in (1, 3)]
    batches = [{**each, "labels": each["input_ids"].clone()} for each in batches]
    for end, each in zip((2, 4), batches, strict=True):
        each["labels"][:, :end] = -100
    with torch.no_grad():
        expected = [model(**each).logits for each in batches]

    def work(which):
        def run(barrier):
            barrier.wait()
            with torch.no_grad():
                return sum(not torch.equal(model(**batches[which]).logits, expected[which]) for _ in range(40))

        return run

    assert together(work(0), work(1)) == [0, 0]


def test_threads_of_autograd_work_for_the_one_that_holds(monkeypatch):
    """On a GPU a backward pass, and what it computes again, runs in a thread that no user has started."""
    model, seen = build(), []
    passes = model.model.layers[0].self_attn.q_proj.adapters.passes

    def worker():
        monkeypatch.setattr(torch._C, "_current_graph_task_id", lambda: 7)
        seen.append((passes.now, on()))

    with lt.rows(model, ["default", None]), reference_implementation():
        mine = passes.now
        thread = threading.Thread(target=worker)
        thread.start()
        thread.join()
    assert seen == [(mine, False)] and on()


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


ROUNDS = {"pickle": lambda model: pickle.loads(pickle.dumps(model)), "torch.save": saved, "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("way", ROUNDS)
@pytest.mark.parametrize("case", ["llama lora", "gpt2 full", "llama loreft", "t5 prefix", "mixtral lora"])
def test_an_adapted_model_comes_back(case, way):
    """The same outputs from the same classes, and adapters that still can be switched and taken off."""
    name, form = case.split()
    forms = {"lora": lt.LoRA(rank=2), "full": lt.Full(), "loreft": lt.LoReFT(rank=2), "prefix": lt.Prefix()}
    model, inputs = build(forms[form], name).eval(), ARCHITECTURES[name].inputs(batch=2)
    with torch.no_grad():
        expected = model(**inputs)[0]
        again = ROUNDS[way](model)
        assert again is not model and type(again).__name__ == type(model).__name__
        assert torch.equal(again(**inputs)[0], expected)
        assert {k: v.shape for k, v in lt.trainable(again).items()} == {
            k: v.shape for k, v in lt.trainable(model).items()
        }
        bare = lt.detach(again)(**inputs)[0]
        with lt.disabled(model):
            assert torch.equal(model(**inputs)[0], bare)
    assert type(again) is ARCHITECTURES[name].build().__class__


def test_shapes_of_attentions_are_read_side_by_side():
    """Prefixes go through transformers' interface, whose functions are one for the whole process."""
    shapes = [
        {path: t.shape for path, t in lt.trainable(build(lt.Prefix(), name)).items()} for name in ("llama", "gpt2")
    ]

    def attached(name):
        return lambda barrier: (barrier.wait(), build(lt.Prefix(), name))[1]

    found = together(attached("llama"), attached("gpt2"))
    assert [{path: t.shape for path, t in lt.trainable(model).items()} for model in found] == shapes


def test_a_copy_settles_its_own_steps():
    """What a layer keeps was made of its own parameters; all else is in the copy."""
    model = lt.attach(ARCHITECTURES["llama"].build(), lt.LoRA(rank=4)).eval()
    lt.attach(model, lt.LoRA(rank=2), name="second").eval()
    inputs = ARCHITECTURES["llama"].inputs(batch=2)
    lt.use(model, "default")
    with torch.no_grad():
        expected = model(**inputs).logits
        assigned = RowAssignment(model)
        assigned.set(["default", "second"])
        model(**inputs)
        container = model.model.layers[0].self_attn.q_proj.adapters
        assert container.decode_plan is not None and container.stacked is not None
        counterpart = copy.deepcopy(model)
        assigned.release()
        lt.use(model, "default")
    other = counterpart.model.layers[0].self_attn.q_proj.adapters
    assert other.decode_plan is None and other.stacked is None
    assert set(vars(other)) == set(vars(container)) and other.path == container.path
    assert counterpart.model.layers[0].self_attn.k_proj.adapters.current is other.current is not container.current
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)


def test_a_copy_is_under_no_pass():
    model = build(lt.LoReFT(rank=2, positions="f2+l2"))
    model(**ARCHITECTURES["llama"].inputs(batch=2))
    current, counterpart = model.adapters.current, copy.deepcopy(model).adapters.current
    assert current.calls and vars(counterpart) == vars(Pass())


@pytest.mark.parametrize("way", ROUNDS)
@pytest.mark.parametrize("context", CONTEXTS)
def test_no_copy_is_made_within_a_context_that_it_would_stay_in(context, way):
    """A copy of a model in `lt.disabled` was disabled for good, one in `lt.prompt` had prompts end there for good."""
    model = build(lt.LoRA(rank=2)).eval()
    inputs = ARCHITECTURES["llama"].inputs(batch=2)
    with torch.no_grad():
        expected = model(**inputs).logits
        with CONTEXTS[context](model), pytest.raises(lt.LuthierError, match=f"in {context}, .* before or behind"):
            ROUNDS[way](model)
        assert torch.equal(ROUNDS[way](model)(**inputs).logits, expected)


def test_remarks_are_held_back_while_any_thread_is_inside_and_then_put_back():
    logger = logging.getLogger(NOISY[0])
    before = logger.level
    logger.setLevel(logging.INFO)
    try:

        def first(barrier):
            with quiet_imports():
                barrier.wait()  # both are inside
            barrier.wait()
            level = logger.level
            barrier.wait()
            return level

        def second(barrier):
            with quiet_imports():
                barrier.wait()
                barrier.wait()  # the first one has left
                barrier.wait()

        assert together(first, second)[0] == logging.ERROR and logger.level == logging.INFO
    finally:
        logger.setLevel(before)


def test_an_error_puts_remarks_back():
    levels = [logging.getLogger(name).level for name in NOISY]
    with pytest.raises(ZeroDivisionError), quiet_imports():
        _ = 1 / 0
    assert [logging.getLogger(name).level for name in NOISY] == levels
