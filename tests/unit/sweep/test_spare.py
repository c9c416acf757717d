"""Copies of checkpoints beside remote results: a trial goes on from where it got, on whatever machine."""

from llmkt_ray.sweep.spare import SpareCheckpoint


def test_a_trial_that_comes_back_to_a_machine_goes_on_from_where_it_got_elsewhere(tmp_path):
    folder, key = f"file://{tmp_path}/results", "trial"
    machines = [tmp_path / "first", tmp_path / "second"]
    for machine, content in zip(machines, (b"epoch 5", b"epoch 50"), strict=True):
        machine.mkdir()
        spare = SpareCheckpoint(folder, machine, key)
        spare.fetch()
        (machine / f"{key}.pt").write_bytes(content)
        spare.push()
    again = SpareCheckpoint(folder, machines[0], key)
    again.fetch()
    assert (machines[0] / f"{key}.pt").read_bytes() == b"epoch 50"
    again.push()
    assert (tmp_path / "results" / "checkpoints" / f"{key}.pt").read_bytes() == b"epoch 50"


def test_where_there_is_no_copy_the_checkpoint_that_is_here_stays(tmp_path):
    (tmp_path / "trial.pt").write_bytes(b"epoch 1")
    SpareCheckpoint(f"file://{tmp_path}/results", tmp_path, "trial").fetch()
    assert (tmp_path / "trial.pt").read_bytes() == b"epoch 1"
