"""Ray: a study's runs as tasks of a cluster, and Ray Train's workers training one adapter."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

import luthier as lt
from luthier.comparing import Study, records, runner, spread
from luthier.core.errors import LuthierError
from luthier.training import Training, metrics
from support.studies import figures
from support.tiny import save_model, sums, write_rows

pytest.importorskip("ray.train")
ray = importlib.import_module("ray")


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> str:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", sums(40, 0))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), "llama", vocab_size=4200)


@pytest.fixture
def cluster():
    """Two nodes of one core each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_study_on_the_nodes_of_a_cluster(model, rows, tmp_path, cluster):
    other = write_rows(tmp_path / "test.jsonl", sums(12, 5))
    values = {
        "models": model,
        "data": {"sums": {"train": rows, "test": other, "max_new_tokens": 3}},
        "methods": ["base", "lora", "loreft"],
        "seeds": 1,
        "training": {"steps": 4, "batch": 4, "eval_fraction": 0.2},
        "timing": 0,
    }
    one = Study.from_dict(values)
    runner.carry_out(one, tmp_path / "one", progress=False)
    runner.carry_out(one, tmp_path / "two", progress=False, place=runner.place_of(None, cluster.address))
    assert figures(tmp_path / "two") == figures(tmp_path / "one")
    assert all(spread.BESIDE in record.notes for record in records(tmp_path / "two"))


def test_no_cluster_is_told(model, rows, tmp_path):
    with pytest.raises(LuthierError, match=r"Ray at localhost:9 cannot be reached: .*refused"):
        runner.compare(model, rows, out=tmp_path / "s", ray="localhost:9", methods=["base"])
    with pytest.raises(LuthierError, match=r"Ray at auto cannot be reached: "):
        runner.compare(model, rows, out=tmp_path / "s", ray="auto", methods=["base"])


def test_two_workers_of_ray_train_give_one_adapter(model, rows, tmp_path):
    """The losses are those of one process with the same global batch."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    given = Training(steps=6, batch=8, eval_fraction=0, lr=1e-2)
    alone = lt.train(model, rows, form=lt.LoRA(rank=4), out=str(tmp_path / "one"), training=given, progress=False)

    def work(config):
        import luthier as lt

        given = lt.Training(**config["training"])
        lt.train(
            config["model"], config["rows"], form=lt.LoRA(rank=4), out=config["out"], training=given, progress=False
        )

    config = {"model": model, "rows": rows, "out": str(tmp_path / "two")}
    config["training"] = {"steps": 6, "batch": 4, "eval_fraction": 0, "lr": 1e-2}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(_path())}})
    try:
        TorchTrainer(
            work,
            train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=2),
            torch_config=TorchConfig(backend="gloo"),
            run_config=RunConfig(storage_path=str(tmp_path / "ray"), name="run"),
        ).fit()
    finally:
        ray.shutdown()
    lines = [line for line in metrics.read(tmp_path / "two") if "loss" in line]
    assert [line["loss"] for line in lines] == pytest.approx([loss for _, loss in alone.losses], rel=1e-5)
    lt.load(lt.model(model).model, tmp_path / "two" / "adapter")


def _path() -> list[str]:
    return [str(Path(lt.__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
