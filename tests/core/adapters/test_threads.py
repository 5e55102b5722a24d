"""Switches belong to a model or a thread: two threads with two models do not meet."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import luthier as lt
import luthier.kernels.lora as kernel
from luthier.core.contracts.kernel import reference_implementation
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
        with lt.rows(model, ["default", "second"]):
            model(**inputs)
            container = model.model.layers[0].self_attn.q_proj.adapters
            assert container.decode_plan is not None and container.stacked is not None
            counterpart = copy.deepcopy(model)
    other = counterpart.model.layers[0].self_attn.q_proj.adapters
    assert other.decode_plan is None and other.stacked is None
    assert set(vars(other)) == set(vars(container)) and other.path == container.path
    assert counterpart.model.layers[0].self_attn.k_proj.adapters.current is other.current is not container.current
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)


def test_a_copy_is_under_no_pass_and_keeps_its_contexts():
    model = build(lt.LoReFT(rank=2, positions="f2+l2"))
    with lt.prompt(model, 3):
        model(**ARCHITECTURES["llama"].inputs(batch=2))
        current = model.adapters.current
        counterpart = copy.deepcopy(model).adapters.current
    assert (
        current.calls
        and not counterpart.calls
        and counterpart.prefetched is counterpart.shared_input is counterpart.derived is None
    )
    assert set(vars(counterpart)) == set(vars(current)) and counterpart.prompt.end == 3


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
