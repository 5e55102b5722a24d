"""The specification: bounds, JSON."""

from __future__ import annotations

import json

import pytest

import luthier as lt
from luthier.training import Run, Training


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0.0},
        {"epochs": True},
        {"epochs": float("nan")},
        {"steps": 0},
        {"batch": 0},
        {"batch": 2.5},
        {"lr": -1.0},
        {"schedule": "cosin"},
        {"warmup": 1.5},
        {"eval_fraction": 1.0},
        {"keep": 0},
        {"seed": -1},
        {"precision": "float64"},
    ],
)
def test_bad_settings(bad):
    with pytest.raises(lt.LuthierError, match=next(iter(bad))):
        Training(**bad)


def test_round_trip():
    run = Run("m", "d", lt.LoReFT(rank=2, positions="f1"), "stream", training=Training(epochs=1.5, lr=1e-3), limit=3)
    assert Run.from_dict(json.loads(json.dumps(run.to_dict()))) == run
    with pytest.raises(lt.LuthierError, match="epochs"):
        Run.from_dict(run.to_dict() | {"training": {"epoch": 1}})
    with pytest.raises(lt.LuthierError, match="form"):
        Run.from_dict({"model": "m", "data": "d"})


@pytest.mark.parametrize("bad", [{"name": "../x"}, {"out": " "}, {"limit": 0}, {"form": "lora"}, {"where": 3}])
def test_bad_runs(bad):
    with pytest.raises(lt.LuthierError):
        Run(**({"model": "m", "data": "d", "form": lt.LoRA()} | bad))


def test_every_setting_is_described():
    import ast
    import inspect

    from luthier.training import spec

    for cls in ast.parse(inspect.getsource(spec)).body:
        if isinstance(cls, ast.ClassDef):
            for field, after in zip(cls.body, cls.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign):
                    assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), field.target.id
