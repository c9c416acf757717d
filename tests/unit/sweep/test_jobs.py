"""What a study's jobs are called, and where its results may arrive; a cluster itself is met in tests/ray/test_jobs.py."""

from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from llmkt_ray.errors import StorageError
from llmkt_ray.results.folder import claim, locked, owner_problem, study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.study_file import load_study
from llmkt_ray.sweep.jobs import Jobs
from llmkt_ray.training.spec import TrialResult, TrialSpec

STUDY = "name: a\ndatasets: [{{name: ml-100k}}]\nmodels: [BPR]\nstorage: {storage}\ntraining: {{epochs: {epochs}}}\n"


class Client:
    """Ray's job client without a cluster: what is submitted runs until it is stopped."""

    def __init__(self) -> None:
        self.jobs = {}

    def list_jobs(self):
        return [SimpleNamespace(submission_id=name, status=status) for name, status in self.jobs.items()]

    def submit_job(self, submission_id, entrypoint, runtime_env):
        self.jobs[submission_id] = JobStatus.RUNNING

    def stop_job(self, name):
        self.jobs[name] = JobStatus.STOPPED


def jobs_of(tmp_path, monkeypatch, storage, epochs=20) -> Jobs:
    path = tmp_path / f"of-{epochs}.yaml"
    path.write_text(STUDY.format(storage=storage, epochs=epochs))
    monkeypatch.setattr("llmkt_ray.sweep.jobs.JobSubmissionClient", lambda address: Client())
    return Jobs(path, "http://nowhere:8265")


def test_a_smoke_run_is_not_the_study(tmp_path, monkeypatch):
    """Submitted while its smoke run went on, a study attached to that and never ran."""
    jobs = jobs_of(tmp_path, monkeypatch, "results")
    smoke, _ = jobs.submit("--smoke")
    real, is_new = jobs.submit()
    assert is_new
    assert (smoke.id, real.id) == (f"a-{jobs.study.key}-smoke-1", f"a-{jobs.study.key}-1")
    assert [jobs.submit(*options)[1] for options in (("--smoke",), ())] == [False, False], "each is attached to while it runs"
    assert [job.id for job in jobs.attempts()] == [real.id]
    assert [jobs.stop().id, jobs.stop().id, jobs.stop()] == [real.id, smoke.id, None]
    assert jobs.submit("--smoke")[0].id == f"a-{jobs.study.key}-smoke-2"


def fill(study, value: float) -> None:
    claim(study)
    spec = TrialSpec(
        study_seed=1, dataset="d", split_key="s", model="BPR", epochs=study.training.epochs, batch_size=8, learning_rate=0.1,
        arm="baseline", metrics=("NDCG@10",), select_on="NDCG@10", seed_index=0,
    )  # fmt: skip
    Ledger(study_folder(study)).record(TrialResult(spec=spec, status="done", test={"NDCG@10": value}), study.key)


def test_results_do_not_arrive_in_another_studys_folder(tmp_path, monkeypatch):
    """The default of `--to` is the default of `storage`: rows of both would stand in one table."""
    here = jobs_of(tmp_path, monkeypatch, tmp_path / "results").study
    far = jobs_of(tmp_path, monkeypatch, "s3://bucket/far", epochs=40)
    far.study = far.study.model_copy(update={"storage": f"file://{tmp_path}/far"})
    fill(here, 0.1), fill(far.study, 0.9)
    with pytest.raises(StorageError, match=r"results/a belongs to another study .*training.*; or fetch into another folder \(--to\)"):
        far.fetch(tmp_path / "results")
    assert Ledger(study_folder(here)).trials()["test_NDCG@10"].tolist() == [0.1]
    assert owner_problem(here) is None
    assert far.fetch(tmp_path / "other") == far.fetch(tmp_path / "other") == tmp_path / "other" / "a"
    assert Ledger(tmp_path / "other" / "a").trials()["test_NDCG@10"].tolist() == [0.9]


def test_results_do_not_arrive_under_a_run(tmp_path, monkeypatch):
    far = jobs_of(tmp_path, monkeypatch, "s3://bucket/far")
    far.study = far.study.model_copy(update={"storage": f"file://{tmp_path}/far"})
    fill(far.study, 0.9)
    same = load_study(far.file).model_copy(update={"storage": str(tmp_path / "results")})
    fill(same, 0.1)
    with locked(study_folder(same)), pytest.raises(StorageError, match="is being run already"):
        far.fetch(tmp_path / "results")
    assert Ledger(study_folder(same)).trials()["test_NDCG@10"].tolist() == [0.1]
