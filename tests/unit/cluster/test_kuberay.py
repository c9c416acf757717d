"""The KubeRay files: what the operator's own schema says, with typos caught, and what a safe cluster needs."""

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from llmkt_ray.sweep.autoscaling import NOT_A_GPU_NODE

ROOT = Path(__file__).parents[3]
GPU_LABEL = {name: value.removeprefix("!") for name, value in NOT_A_GPU_NODE.items()}
KUBERAY = ROOT / "cluster" / "kuberay"
CRDS = ROOT.parent / "shared" / "schemas"
FILES = {"raycluster.yaml": "ray.io_rayclusters.yaml", "rayjob.yaml": "ray.io_rayjobs.yaml"}


# The CRDs leave `metadata` an open object: these are the fields that our files may use there.
METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?$"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def closed(schema: Any) -> Any:
    """Returns an openAPIV3 structural schema as JSON Schema with unknown fields forbidden.

    A CRD does not forbid unknown fields, it prunes them: `minReplica: 0` would silently be dropped. Objects with
    `properties` are closed, except where the schema says that unknown fields are kept.
    """
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items() if not key.startswith("x-") and key not in ("description", "properties")}
    if schema.get("nullable"):
        result["type"] = [schema["type"], "null"]
    if "properties" in schema:
        result["properties"] = {name: closed(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
            result["additionalProperties"] = False
    return result


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((KUBERAY / name).read_text())


def cluster_of(name: str) -> dict[str, Any]:
    spec = load(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(name: str) -> list[dict[str, Any]]:
    cluster = cluster_of(name)
    templates = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    submitter = load(name)["spec"].get("submitterPodTemplate")
    return [*templates, submitter] if submitter else templates


@pytest.fixture(scope="module", params=FILES)
def validator(request: pytest.FixtureRequest) -> tuple[str, jsonschema.Draft202012Validator]:
    path = CRDS / FILES[request.param]
    if not path.exists():
        pytest.skip(f"the CRD {path.name} is not on this machine")
    crd = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (v for v in crd["spec"]["versions"] if v["name"] == "v1")
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = METADATA
    return request.param, jsonschema.Draft202012Validator(schema)


def errors(validator: jsonschema.Draft202012Validator, document: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@pytest.mark.shared_data
def test_a_file_is_what_the_operator_expects(validator: tuple[str, jsonschema.Draft202012Validator]) -> None:
    name, schema = validator
    assert errors(schema, load(name)) == []


def places(node: Any) -> list[list[str | int]]:
    """Every path to a mapping of a document."""
    if isinstance(node, dict):
        return [[], *([key, *rest] for key, value in node.items() for rest in places(value))]
    if isinstance(node, list):
        return [[index, *rest] for index, value in enumerate(node) for rest in places(value)]
    return []


FREE = {"rayStartParams", "labels", "annotations", "matchLabels", "requests", "limits", "nodeSelector"}
"""Mappings whose keys are free in Kubernetes too."""


@pytest.mark.shared_data
def test_a_typo_anywhere_is_caught(validator: tuple[str, jsonschema.Draft202012Validator]) -> None:
    name, schema = validator
    planted = [path for path in places(load(name)) if not (path and path[-1] in FREE)]
    assert len(planted) > 30
    for path in planted:
        document = copy.deepcopy(load(name))
        target = document
        for step in path:
            target = target[step]
        target["minReplica"] = 0
        assert any("minReplica" in error for error in errors(schema, document)), path


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("field", "value"), [("maxReplicas", "four"), ("replicas", 1.5), ("rayStartParams", {"num-cpus": 0}), ("idleTimeoutSeconds", "2m")]
)
def test_a_wrong_type_is_caught(validator: tuple[str, jsonschema.Draft202012Validator], field: str, value: object) -> None:
    name, schema = validator
    document = load(name)
    (document["spec"].get("rayClusterSpec") or document["spec"])["workerGroupSpecs"][0][field] = value
    assert len(errors(schema, document)) == 1


def test_job_and_cluster_describe_the_same_cluster() -> None:
    assert cluster_of("rayjob.yaml") == cluster_of("raycluster.yaml")


@pytest.mark.parametrize("name", FILES)
def test_gpus_and_cpus_scale_from_nothing_and_back(name: str) -> None:
    cluster = cluster_of(name)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu"}
    for group in groups.values():
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
        assert group["maxReplicas"] > 0
        assert 0 < group["idleTimeoutSeconds"] <= 600
        assert group["template"]["spec"]["restartPolicy"] == "Never"
    asks = {
        name: [c["resources"]["limits"].get("nvidia.com/gpu") for c in group["template"]["spec"]["containers"]]
        for name, group in groups.items()
    }
    assert asks == {"cpu": [None], "gpu": ["1"]}
    assert groups["gpu"]["labels"] == GPU_LABEL, "or trials that need CPUs alone would start GPU nodes"
    assert "labels" not in groups["cpu"]


@pytest.mark.parametrize("name", FILES)
def test_token_authentication_is_on_through_a_secret(name: str) -> None:
    assert cluster_of(name)["authOptions"] == {"mode": "token", "secretName": "llmkt-ray-token"}


@pytest.mark.parametrize("name", FILES)
def test_pods_have_no_rights_they_do_not_need(name: str) -> None:
    for pod in pods(name):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert set(container["resources"]) == {"requests", "limits"}


@pytest.mark.parametrize("name", FILES)
def test_every_pod_is_under_the_network_policy(name: str) -> None:
    policy = load("networkpolicy.yaml")
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    selected = policy["spec"]["podSelector"]["matchLabels"]
    for pod in pods(name):
        assert selected.items() <= pod["metadata"]["labels"].items()


def test_the_network_policy_lets_in_the_cluster_itself_and_the_operator_only() -> None:
    spec = load("networkpolicy.yaml")["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    within, operator = spec["ingress"]
    assert within == {"from": [{"podSelector": spec["podSelector"]}]}
    assert [port["port"] for port in operator["ports"]] == [8265]
    (peer,) = operator["from"]
    assert peer["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}


def test_the_job_runs_the_entry_point_and_is_cleaned_up() -> None:
    spec = load("rayjob.yaml")["spec"]
    assert spec["entrypoint"] == "python -m sweeps.run sweeps/alpha_sensitivity.yaml"
    rules = spec["deletionStrategy"]["deletionRules"]
    for status in ("SUCCEEDED", "FAILED"):
        waits = {rule["policy"]: rule["condition"]["ttlSeconds"] for rule in rules if rule["condition"].get("jobStatus") == status}
        assert 0 < waits["DeleteCluster"] < waits.get("DeleteSelf", float("inf")), "the logs can be read for a while, then nothing is paid"
    assert any(rule["condition"].get("jobDeploymentStatus") == "Failed" for rule in rules), "a cluster that never came up goes too"


def test_the_operator_would_take_the_deletion_rules() -> None:
    """What a schema cannot say: `validateDeletionConfiguration` and `validateDeletionRules` of KubeRay 1.6.0 and 1.7.0."""
    spec = load("rayjob.yaml")["spec"]
    rules = spec["deletionStrategy"]["deletionRules"]
    assert set(spec["deletionStrategy"]) == {"deletionRules"}
    assert not spec.keys() & {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "clusterSelector"}
    assert all(len(rule["condition"].keys() & {"jobStatus", "jobDeploymentStatus"}) == 1 for rule in rules)
    told = [(rule["policy"], rule["condition"].get("jobStatus"), rule["condition"].get("jobDeploymentStatus")) for rule in rules]
    assert len(set(told)) == len(told)
    assert cluster_of("rayjob.yaml")["enableInTreeAutoscaling"]
    assert "DeleteWorkers" not in {policy for policy, *_ in told}, "not supported with autoscaling enabled: the job would never start"


@pytest.mark.parametrize("name", FILES)
def test_the_recipe_s_ray_is_the_one_that_is_installed(name: str) -> None:
    assert f"ray=={cluster_of(name)['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()
