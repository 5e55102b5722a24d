"""Every kernel of an adapted linear layer against the form's own equation."""

from __future__ import annotations

import copy
import pkgutil
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import luthier as lt
from luthier import kernels
from luthier.core.adapters.control import RowAssignment
from luthier.core.contracts.component import find, names
from luthier.core.contracts.init import Init
from luthier.core.contracts.kernel import kernel_of, reference_implementation
from luthier.kernels._dropout import draw_mask, dropped, keep
from support.architectures import ARCHITECTURES

KERNELS = [name for name in names("forms") if kernel_of(find("forms", name)) is not None]
FORMS = [name for name in KERNELS if "linear" in vars(kernel_of(find("forms", name)))]


class Chain(nn.Module):
    """Layers one after the other, also with a container at the root, which `nn.Sequential` would run as a layer."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def __getitem__(self, place: int) -> nn.Module:
        return self.layers[place]

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def build(dtype=torch.float64, bias: bool = True, subtract_start: bool = False, **settings):
    """(form's name -> an adapted layer away from its start, with those of the settings that the form has)."""

    def made(name: str) -> nn.Module:
        torch.manual_seed(3)
        model = Chain(nn.Linear(12, 12, dtype=dtype), nn.Linear(12, 20, bias=bias, dtype=dtype))
        cls = find("forms", name)
        form = cls(**{key: value for key, value in settings.items() if key in cls.settings()})
        lt.attach(model, form, "1", subtract_start=subtract_start)
        return moved(model)

    return made


def moved(model: nn.Module) -> nn.Module:
    for parameter in lt.trainable(model).values():
        parameter.data += 0.2 * torch.randn(parameter.shape, dtype=parameter.dtype)
    return model


def run(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    y = model(x)
    held = lt.trainable(model)
    y.square().sum().backward()
    found = [y.detach(), x.grad, *(p.grad.clone() for p in held.values())]
    for parameter in held.values():
        parameter.grad = None
    return found


def test_the_headline_forms_have_kernels():
    assert {"lora", "wegeft", "dora"} <= set(FORMS)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12), (12,)])
def test_a_kernel_is_its_equation(name, bias, shape, monkeypatch):
    model, x = build(bias=bias)(name), torch.randn(*shape, dtype=torch.float64)
    fast = run(model, x)
    with reference_implementation():
        slow = run(model, x)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(fast, slow, strict=True))
    refuse = lambda *given: pytest.fail("the plain path was to run")  # noqa: E731
    monkeypatch.setattr("luthier.core.adapters.forward.fast_linear", refuse)
    with pytest.raises(pytest.fail.Exception):
        model(x)


class Adding(nn.Module):
    """Writes into what a layer returned, as Falcon's blocks do (`mlp_output += attention_output`)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        y = self.inner(x)
        y += x
        return y


@pytest.mark.parametrize("form", FORMS)
def test_a_model_that_writes_into_what_a_layer_returns(form):
    model = ARCHITECTURES["llama"].build(dtype=torch.float64)
    for block in model.model.layers:
        block.mlp = Adding(block.mlp)
    moved(lt.attach(model, find("forms", form)()))

    def step() -> list[torch.Tensor]:
        model.zero_grad()
        model(**ARCHITECTURES["llama"].inputs()).logits.square().sum().backward()
        return [p.grad.clone() for p in lt.trainable(model).values()]

    fast = step()
    with reference_implementation():
        assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-9) for a, b in zip(fast, step(), strict=True))


@pytest.mark.parametrize("bias", [True, False])
def test_dora_learns_lengths_of_nought_and_behind_a_large_bias(bias):
    model, x = build(dtype=torch.float32, bias=bias)("dora"), torch.randn(5, 12)
    if bias:
        model[1].bias.data.fill_(1e4)
    (lengths,) = (p for key, p in lt.trainable(model).items() if key.endswith(".m"))
    lengths.data[3] = 0
    with reference_implementation():
        slow = run(model.double(), x.double())
    fast = run(model.float(), x)
    for a, b in zip(fast[1:], slow[1:], strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("fast", [True, False])
def test_dora_leaves_a_row_of_zeros_until_it_has_a_direction(fast):
    torch.manual_seed(3)
    model, x = Chain(nn.Linear(12, 12).double(), nn.Linear(12, 20).double()), torch.randn(5, 12).double()
    model[1].weight.data[[0, 7]] = 0
    base = model(x).detach()
    lt.attach(model, lt.DoRA(rank=2), "1")
    with nullcontext() if fast else reference_implementation():
        with torch.no_grad():
            assert torch.allclose(model(x), base, atol=1e-12)
        y, *gradients = run(model, x)
        assert torch.allclose(y, base, atol=1e-12) and all(g.isfinite().all() for g in gradients)
        assert gradients[2][7].any()  # B, which may lead the row away
        for _ in range(3):
            model(x).square().sum().backward()
            for parameter in lt.trainable(model).values():
                parameter.data -= 1e-3 * parameter.grad
                parameter.grad = None
        trained = model.eval()(x).detach()
        assert trained.isfinite().all() and (trained - base)[:, 7].any()
    model[1].adapters.tuners()[0].B.data[0] = 0
    with torch.no_grad():
        expected = model(x)
        assert torch.allclose(lt.merge(model)(x), expected, atol=1e-12) and expected.isfinite().all()


@pytest.mark.parametrize("name", FORMS)
def test_a_weight_may_change_between_two_steps(name):
    model, x = build()(name), torch.randn(5, 12, dtype=torch.float64)
    run(model, x)
    for change in (lambda w: w.mul_(1.5), lambda w: w.data.mul_(2.0), lambda w: setattr(w, "data", w.data + 0.3)):
        with torch.no_grad():
            change(model[1].weight)
        fast = run(model, x)
        with reference_implementation():
            slow = run(model, x)
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(fast, slow, strict=True))


@pytest.mark.parametrize("name", FORMS)
def test_second_derivatives_are_refused_and_not_wrong(name):
    model, x = build()(name), torch.randn(5, 12, dtype=torch.float64)
    first = lambda: torch.autograd.grad(model(x).square().sum(), [*lt.trainable(model).values()], create_graph=True)  # noqa: E731
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(gradient.square().sum() for gradient in first()).backward()
    with reference_implementation():
        sum(gradient.square().sum() for gradient in first()).backward()


@pytest.mark.parametrize("name", FORMS)
def test_it_saves_work_where_the_input_needs_no_gradient(name):
    model, x = build()(name), torch.randn(4, 12, dtype=torch.float64)
    model(x).sum().backward()
    fast = [p.grad.clone() for p in lt.trainable(model).values()]
    model.zero_grad()
    with reference_implementation():
        model(x).sum().backward()
    assert all(torch.allclose(p.grad, g) for p, g in zip(lt.trainable(model).values(), fast, strict=True))
    with torch.no_grad():
        assert not model(x).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FORMS)
def test_a_frozen_adapter_lets_gradients_through(name, dtype):
    model = build(dtype)(name)
    for parameter in lt.trainable(model).values():
        parameter.requires_grad_(False)
    x = torch.randn(4, 12, dtype=dtype, requires_grad=True)
    (fast,) = torch.autograd.grad(model(x).square().sum(), x)
    with reference_implementation():
        (slow,) = torch.autograd.grad(model(x).square().sum(), x)
    assert torch.allclose(fast, slow, rtol=1e-4)


@pytest.mark.parametrize("name", FORMS)
def test_in_bfloat16_it_is_no_less_exact_than_the_plain_path(name):
    model, x = build(torch.bfloat16)(name), torch.randn(64, 12)
    exact = build(torch.float64)(name)
    exact.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    truth = run(exact, x.bfloat16().double())
    fast = run(model, x.bfloat16())
    with reference_implementation():
        slow = run(model, x.bfloat16())
    for true, a, b in zip(truth, fast, slow, strict=True):
        errors = [float((t.double() - true).norm() / true.norm()) for t in (a, b)]
        assert errors[0] <= max(1.5 * errors[1], 4e-3)


@pytest.mark.parametrize("name", [n for n in FORMS if "dropout" in find("forms", n).settings()])
def test_dropout_is_of_the_input_and_keeps_its_mean(name, monkeypatch):
    model, x = build(dropout=0.5)(name), torch.randn(7, 12, dtype=torch.float64)
    mask = torch.rand(7, 12) > 0.5
    with monkeypatch.context() as patch:
        patch.setattr("luthier.kernels._dropout.draw_mask", lambda x, rate: mask)
        fast = run(model, x)
    monkeypatch.setattr(f"luthier.methods.forms.{name}.dropout", lambda x, rate: x * mask.to(x) / 0.5)
    with reference_implementation():
        slow = run(model, x)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(fast, slow, strict=True))


def test_masks_keep_the_share_they_say():
    for rate in (0.05, 0.5, 0.001):
        mask = draw_mask(torch.empty(1001, 999), rate)
        assert abs(float(mask.float().mean()) - keep(rate)) < 2e-3
        assert abs(keep(rate) - (1 - rate)) <= 1 / 256
        columns = mask.float().mean(0)
        assert float(columns.std()) < 1.2 * (keep(rate) * (1 - keep(rate)) / 1001) ** 0.5
    assert dropped(torch.empty(3), 0.0, torch.empty(0)) is None and keep(0.0) == 1.0


def test_layers_that_read_the_same_tensor_share_a_mask_and_others_do_not():
    x = torch.randn(64, 64)
    query, key, value = (torch.empty(0) for _ in range(3))
    first = dropped(x, 0.5, query)
    assert first is not None and dropped(x, 0.5, key) is first
    assert torch.equal(first.x, x * first.mask)
    draws = [(x, 0.5, query), (x, 0.25, value), (x.clone(), 0.5, value), (x, 0.5, value), (x.add_(0), 0.5, key)]
    for other in (dropped(*draw) for draw in draws):
        assert other is not None and not torch.equal(other.mask, first.mask)


class Refusing:
    """A kernel that must not run."""

    @staticmethod
    def linear(*given):
        raise AssertionError("a kernel ran")


def test_what_a_kernel_cannot_serve_runs_plainly(monkeypatch):
    model, x = build()("lora"), torch.randn(3, 12, dtype=torch.float64)
    adapters = model[1].adapters
    monkeypatch.setattr("luthier.core.adapters.dispatch.kernel_of", lambda form: Refusing)
    with pytest.raises(AssertionError, match="a kernel ran"):
        model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
    torch.compile(model, backend="eager", fullgraph=True)(x)
    with reference_implementation():
        model(x)
    with lt.rows(model, ["default", None, "default"]):
        model(x)
    lt.attach(model, lt.IA3(), "1", name="second")
    assert not adapters.fast


DECODERS = [name for name in KERNELS if {"decoder", "mixed"} <= set(vars(kernel_of(find("forms", name))))]


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 12), (2, 40, 12), (12,)])
def test_a_cached_decode_plan_is_the_equation(name, dtype, shape):
    model, x = build(dtype, dropout=0.3)(name).eval(), torch.randn(*shape).to(dtype)
    adapters = model[1].adapters
    with torch.no_grad():
        first, settled = model(x), adapters.decode_plan
        assert settled is not None
        assert torch.equal(model(x), first) and adapters.decode_plan is settled
        with reference_implementation():
            expected = model(x)
    error = (first - expected).abs().max() / expected.abs().max()
    assert error < (1e-12 if dtype == torch.float64 else 2e-2)


LIVE = ["lora", "wegeft", "meteora", "loramoe"]
"""Steps that keep nothing but the parameters."""


def same(model: nn.Module, x: torch.Tensor) -> bool:
    """Whether the settled step gives what the equation gives now."""
    with torch.no_grad():
        fast = model(x)
        with reference_implementation():
            return torch.allclose(fast, model(x), atol=1e-12)


@pytest.mark.parametrize("subtract_start", [False, True])
@pytest.mark.parametrize("name", DECODERS)
def test_a_cached_decode_plan_follows_what_changes(name, subtract_start):
    model, x = build(subtract_start=subtract_start)(name).eval(), torch.randn(2, 3, 12, dtype=torch.float64)
    adapters, served = model[1].adapters, [n for n in LIVE if n in DIFFERENCES] if subtract_start else DECODERS
    assert same(model, x) and (adapters.decode_plan is not None) == (name in served)
    with torch.no_grad():
        before = model(x)
        for parameter in lt.trainable(model).values():
            parameter.mul_(1.5)
        assert not torch.allclose(model(x), before)
    assert same(model, x)
    model[1].weight = nn.Parameter(model[1].weight * 2, requires_grad=False)
    assert same(model, x)
    with torch.no_grad():
        model[1].weight.mul_(0.5)
    assert same(model, x)
    for parameter in lt.trainable(model).values():  # as accelerate moves them
        parameter.data = parameter.data * 1.1
    assert same(model, x)
    model.load_state_dict({k: 0.9 * v for k, v in model.state_dict().items()}, assign=True)
    assert same(model, x)
    with torch.no_grad():
        acting = model(x)
        with lt.disabled(model):
            assert not torch.allclose(model(x), acting)
        assert torch.equal(model(x), acting)


@pytest.mark.parametrize("name", [name for name in DECODERS if issubclass(find("forms", name), lt.Routed)])
def test_routing_is_told_where_a_decode_plan_stands(name):
    model, x = build()(name).eval(), torch.randn(1, 1, 12, dtype=torch.float64)
    with torch.no_grad():
        fast = model(x)
        assert model[1].adapters.decode_plan is not None
        with lt.watched(model) as routes:
            watched = model(x)
    assert len(routes) == 1 and torch.allclose(fast, watched, atol=1e-12)


@pytest.mark.parametrize("name", DECODERS)
def test_training_unsettles_a_step(name):
    """Some optimisers write past torch's counters: behind a pass with gradients nothing that was kept counts."""
    model, x = build()(name).eval(), torch.randn(2, 3, 12, dtype=torch.float64)
    adapters = model[1].adapters
    assert same(model, x)
    model(x).sum().backward()
    assert adapters.decode_plan is None
    for parameter in lt.trainable(model).values():
        parameter.data.sub_(0.3 * parameter.grad)
    assert same(model, x)
    model.train()
    assert adapters.decode_plan is None


@pytest.mark.parametrize("name", LIVE)
def test_a_step_that_keeps_nothing_follows_even_what_no_counter_sees(name):
    model, x = build()(name).eval(), torch.randn(2, 3, 12, dtype=torch.float64)
    assert same(model, x)
    for parameter in lt.trainable(model).values():
        parameter.data.mul_(1.5)
    assert same(model, x)


def test_parameters_without_counters_are_not_kept():
    with torch.inference_mode():
        model, x = build()("dora").eval(), torch.randn(2, 3, 12, dtype=torch.float64)
        for _ in range(2):
            with reference_implementation():
                slow = model(x)
            assert torch.allclose(model(x), slow) and model[1].adapters.decode_plan is None
            for parameter in model[1].adapters.named("default")[0].parameters():
                parameter.mul_(1.5)


DIFFERENCES = [name for name in FORMS if "difference" in vars(kernel_of(find("forms", name)))]


@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_difference_to_the_start_is_nothing_at_the_start(name, dtype):
    torch.manual_seed(0)
    model, x = Chain(nn.Linear(12, 20, dtype=dtype)), torch.randn(6, 12).to(dtype)
    base = model(x)
    form = find("forms", name)(rank=3)
    lt.attach(model, form, "0", subtract_start=True, init=Started())
    assert model[0].adapters.fast
    assert torch.equal(model(x), base)
    with torch.no_grad():
        assert torch.equal(model(x), base) and model[0].adapters.decode_plan is not None


class Started(Init):
    """Factors that have an effect."""

    def factors(self, form, site, stats):
        return {key: torch.randn_like(tensor) for key, tensor in form.init(site, stats).items()}


@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_difference_to_the_start_is_its_equation(name, dropout):
    model, x = build(subtract_start=True, dropout=dropout)(name), torch.randn(2, 3, 12, dtype=torch.float64)
    moved(model)
    torch.manual_seed(0)
    fast = run(model, x)
    torch.manual_seed(0)
    with reference_implementation():
        slow = run(model, x)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(fast, slow, strict=True))


@pytest.mark.parametrize("name", DIFFERENCES)
def test_differences_to_starts_in_a_mixed_batch(name):
    torch.manual_seed(5)
    model, x = Chain(nn.Linear(12, 20)).double(), torch.randn(4, 2, 12, dtype=torch.float64)
    for index, subtract_start in enumerate([True, False, True]):
        lt.attach(
            model,
            find("forms", name)(rank=2 + index),
            "0",
            name=f"a{index}",
            subtract_start=subtract_start,
            init=Started(),
        )
    moved(model.eval())
    with lt.rows(model, ["a2", None, "a0", "a1"]):
        assert same(model, x) and model[0].adapters.decode_plan is not None
        with torch.no_grad():
            next(iter(lt.trainable(model).values())).mul_(3)
        assert same(model, x)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_mixed_batch_of_several_ranks_and_scales(name, tokens, dtype):
    torch.manual_seed(5)
    model = Chain(nn.Linear(12, 20, dtype=dtype))
    for index, (rank, alpha) in enumerate([(2, 4.0), (5, 3.0), (1, 7.0)]):
        cls = find("forms", name)
        scaled = {"alpha": alpha} if "alpha" in cls.settings() else {"scale": alpha / rank}
        lt.attach(model, cls(rank=rank, **scaled), "0", name=f"a{index}")
    for parameter in lt.trainable(model).values():
        parameter.data += 0.3 * torch.randn(parameter.shape, dtype=parameter.dtype)
    x = torch.randn(5, tokens, 12, dtype=torch.float64).to(dtype)
    with torch.no_grad(), lt.rows(model.eval(), ["a2", None, "a0", "a1", "a2"]):
        fast = model(x)
        assert model[0].adapters.decode_plan is not None
        with reference_implementation():
            slow = model(x)
    assert (fast - slow).abs().max() / slow.abs().max() < (1e-12 if dtype == torch.float64 else 2e-2)
    assert not torch.equal(fast[0], model[0].forward(x[0]))


ARRANGEMENTS = [
    ["a2", None, "a0", "a1", "a2", "a0"],
    ["a0", "a1", "a2", "a0", "a1", "a2"],
    ["a0", "a0", "a1", "a1", "a2", "a2"],
    ["a1", *["a0"] * 30, None],
    ["a2", None],
    ["a2", "a2", "a0"],
    [None, "a1"],
    [None, "a1", "a2"],
    [None, "a1", None],
]
"""Any order, each one's turn, sorted, lopsided, most without rows."""


def several(name: str, dtype: torch.dtype = torch.float64) -> Chain:
    torch.manual_seed(5)
    model = Chain(nn.Linear(12, 20, dtype=dtype))
    for index, rank in enumerate((2, 5, 1)):
        lt.attach(model, find("forms", name)(rank=rank), "0", name=f"a{index}")
    moved(model)
    return model.eval()


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_rows_come_and_go_and_the_adapters_stay_stacked(name, tokens):
    model = several(name)
    row_assignment, stacks = RowAssignment(model), set()
    for names_ in ARRANGEMENTS:
        row_assignment.set(names_)
        x = torch.randn(len(names_), tokens, 12, dtype=torch.float64)
        assert same(model, x) and same(model, x)
        stacks.add(id(model[0].adapters.stacked))
        with torch.no_grad():
            fast = model(x)
            row_assignment.release()
            for row, name_ in enumerate(names_):
                alone = lt.use(model, name_ or [])(x[row : row + 1])
                assert torch.allclose(fast[row], alone[0], atol=1e-12)
    assert len(stacks) == 1


@pytest.mark.parametrize("name", DECODERS)
def test_a_stack_follows_what_changes(name):
    model, x = several(name), torch.randn(3, 1, 12, dtype=torch.float64)
    adapters, row_assignment = model[0].adapters, RowAssignment(model)
    seen = []

    def look() -> None:
        assert same(model, x)
        seen.append(adapters.stacked)
        assert len({id(stack) for stack in seen}) == len(seen)

    row_assignment.set(["a0", "a1", "a2"])
    look()
    row_assignment.release()
    with torch.no_grad():
        next(iter(adapters.named("a1")[0].parameters())).mul_(3)
    row_assignment.set(["a0", "a1", "a2"])
    look()
    row_assignment.release()
    with torch.no_grad():
        next(iter(adapters.named("a1")[0].parameters())).mul_(3)  # it is in the stack, though no row uses it now
    row_assignment.set(["a0", "a2", None])
    look()
    row_assignment.release()
    for parameter in adapters.named("a0")[0].parameters():
        parameter.data = parameter.data * 1.1
    row_assignment.set(["a0", "a2", None])
    look()
    row_assignment.release()
    lt.detach(model, "a0")
    assert adapters.stacked is None
    row_assignment.set(["a1", "a2", "a2"])
    look()
    model(x).sum().backward()
    assert adapters.stacked is None
    look()
    model.train()
    assert adapters.stacked is None
    assert copy.deepcopy(model.eval())[0].adapters.stacked is None


@pytest.mark.parametrize("name", DECODERS)
def test_the_same_tuple_of_rows_sees_what_changed_in_between(name):
    """A step goes by which object the rows are, and a tuple of a tuple is the same one."""
    model, x = several(name), torch.randn(3, 1, 12, dtype=torch.float64)
    row_assignment, rows = RowAssignment(model), ("a0", "a1", None)

    def change() -> None:
        with torch.no_grad():
            for parameter in lt.trainable(model).values():
                parameter.mul_(1.5)

    for _ in range(2):
        row_assignment.set(rows)
        assert same(model, x)
        row_assignment.release()
        change()
    with lt.rows(model, rows):
        assert same(model, x)


def test_a_form_of_the_same_name_keeps_its_own_equation():
    class LoRA(find("forms", "ia3")):  # type: ignore[misc]
        """Another equation."""

    assert LoRA.name() == "lora" and kernel_of(LoRA) is None and kernel_of(find("forms", "lora")) is not None


def test_files_of_kernels_bear_the_names_of_forms():
    found = {m.name for m in pkgutil.iter_modules(kernels.__path__) if not m.name.startswith("_")}
    others = {"backend", "memory_saving"}  # no kernels of forms
    assert found - others <= set(names("forms"))
