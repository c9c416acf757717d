"""The cluster-launcher files, through the very functions that `ray up` calls."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from llmkt_ray.sweep.autoscaling import NOT_A_GPU_NODE

ROOT = Path(__file__).parents[3]
LAUNCHER = ROOT / "cluster" / "launcher"
NAMES = ("aws.yaml", "gcp.yaml", "onpremise.yaml")
CLOUDS = NAMES[:2]


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((LAUNCHER / name).read_text())


def test_every_file_is_tested() -> None:
    assert {path.name for path in LAUNCHER.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_ray_up_would_take_it(name: str) -> None:
    prepared = prepare_config(load(name))
    validate_config(prepared)
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(prepared, schema)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("harm", [{"max_worker": 3}, {"cluster_name": 5}, {"idle_timeout_minutes": "five"}, {"provider": {}}])
def test_the_check_would_catch_a_mistake(name: str, harm: dict[str, Any]) -> None:
    with pytest.raises((jsonschema.ValidationError, KeyError, SystemExit)):
        validate_config(prepare_config({**load(name), **harm}))


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_start_from_nothing_on_capacity_that_may_be_taken_away(name: str) -> None:
    config = prepare_config(load(name))
    types = config["available_node_types"]
    head = config["head_node_type"]
    assert types[head]["resources"] == {"CPU": 0}
    assert types[head]["max_workers"] == 0
    assert set(types) == {head, "cpu", "gpu"}
    for kind in ("cpu", "gpu"):
        assert types[kind]["min_workers"] == 0 < types[kind]["max_workers"] <= config["max_workers"]
        assert re.search("spot|preemptible", str(types[kind]["node_config"]))
    assert not re.search("spot|preemptible", str(types[head]["node_config"]))
    assert types["gpu"]["labels"] == {name: value.removeprefix("!") for name, value in NOT_A_GPU_NODE.items()}
    assert not types["cpu"].get("labels")
    assert config["idle_timeout_minutes"] <= 10


def test_machines_of_one_s_own_are_all_used() -> None:
    config = prepare_config(load("onpremise.yaml"))
    (kind,) = config["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(config["provider"]["worker_ips"])
    assert any("--head --num-cpus=0" in command for command in config["head_start_ray_commands"])


@pytest.mark.parametrize("name", NAMES)
def test_token_authentication_is_on_at_every_start_and_the_token_comes_from_a_file(name: str) -> None:
    config = load(name)
    starts = [
        command for key in ("head_start_ray_commands", "worker_start_ray_commands") for command in config[key] if "ray start" in command
    ]
    assert len(starts) == 2
    assert all(command.startswith("RAY_AUTH_MODE=token ray start") for command in starts)
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("name", NAMES)
def test_every_node_runs_the_image_with_a_fixed_tag(name: str) -> None:
    assert re.fullmatch(r"your-team/llmkt-ray:\d+\.\d+\.\d+", load(name)["docker"]["image"])
