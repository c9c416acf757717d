"""Is a model trained by our loop as good as one trained by RecBole's Trainer?

    python -m benchmarks.parity.run

BPR, NeuMF, MultiVAE and LightGCN on ml-100k (rating >= 4, random 70/10/20 per user), the same split, the same model class, the
same settings, several seeds each; the measure is NDCG@10 on test, full ranking, at the best validation epoch. The two sides
draw different random numbers, so the comparison is of two samples: mean difference relative to RecBole's mean with a 90 %
Welch interval, wanted within +-3 %.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.recbole_side import positives_only, run_recbole, write_atomic
from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.split import prepare
from llmkt_ray.study import DatasetConfig, ScheduleConfig
from llmkt_ray.training.spec import TrialArtifacts, TrialSpec
from llmkt_ray.training.trial import run_trial

WANTED = 0.03
SETTINGS: dict[str, dict[str, Any]] = {
    "BPR": {"epochs": 60, "batch_size": 1024, "learning_rate": 0.003, "evaluate_every": 5, "hyperparameters": {"embedding_size": 64}},
    "NeuMF": {"epochs": 24, "batch_size": 512, "learning_rate": 0.001, "evaluate_every": 4, "hyperparameters": {"mf_embedding_size": 32, "mlp_embedding_size": 32, "mlp_hidden_size": [64, 32]}},  # noqa: E501
    "MultiVAE": {"epochs": 40, "batch_size": 128, "learning_rate": 0.0005, "evaluate_every": 4, "hyperparameters": {"total_anneal_steps": 400}},  # noqa: E501
    "LightGCN": {"epochs": 24, "batch_size": 1024, "learning_rate": 0.005, "evaluate_every": 4, "hyperparameters": {"n_layers": 2}},
}  # fmt: skip


def interval(ours: np.ndarray, theirs: np.ndarray, level: float = 0.90) -> tuple[float, float, float]:
    """Returns the relative difference of means and its Welch interval."""
    low, high = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(level)
    base = theirs.mean()
    return (ours.mean() - base) / base, low / base, high / base


def main() -> int:
    """Runs both sides and prints one row a model; the exit code is 1 where an interval is not within +-3 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--models", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--out", type=Path, help="a JSON file for every value")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = DatasetConfig.model_validate({"name": "ml-100k", "positive": {"rating_at_least": 4}})
    values: dict[str, dict[str, list[float]]] = {}
    met = True
    with tempfile.TemporaryDirectory() as scratch:
        data = positives_only(prepare(config, study_seed=2026, store=ArtifactStore(Path(scratch, "store"))))
        write_atomic(data, Path(scratch, "files"))
        print(f"{'model':10} {'RecBole':>9} {'ours':>9} {'difference':>11} {'90 % interval':>20} {'seconds (RecBole, ours)':>25}")
        for model in arguments.models:
            chosen = SETTINGS[model]
            ours, theirs, seconds = [], [], [0.0, 0.0]
            for seed in range(arguments.seeds):
                spec = TrialSpec(
                    study_seed=2026, dataset=data.name, split_key=data.key, model=model, arm="baseline", seed_index=seed,
                    schedule=ScheduleConfig(switch=0.0), metrics=("NDCG@10",), select_on="NDCG@10", **chosen,
                )  # fmt: skip
                started = time.perf_counter()
                ours.append(run_trial(spec, TrialArtifacts(data)).test["NDCG@10"])
                seconds[1] += time.perf_counter() - started
                settings = dict(chosen["hyperparameters"]) | {
                    "train_batch_size": chosen["batch_size"], "learning_rate": chosen["learning_rate"],
                    "eval_step": chosen["evaluate_every"], "eval_batch_size": 400_000,
                }  # fmt: skip
                started = time.perf_counter()
                theirs.append(
                    run_recbole(model, Path(scratch, "files"), seed=seed + 1, epochs=chosen["epochs"], settings=settings).test["NDCG@10"]
                )
                seconds[0] += time.perf_counter() - started
            difference, low, high = interval(np.asarray(ours), np.asarray(theirs))
            inside = bool(low >= -WANTED and high <= WANTED)
            met &= inside
            values[model] = {"ours": ours, "recbole": theirs, "interval": [low, high]}
            print(
                f"{model:10} {np.mean(theirs):9.4f} {np.mean(ours):9.4f} {difference:+11.2%} {f'[{low:+.2%}, {high:+.2%}]':>20} "
                f"{seconds[0]:12.0f} {seconds[1]:12.0f}  {'met' if inside else 'NOT MET'}",
                flush=True,
            )
    if arguments.out:
        arguments.out.write_text(json.dumps(values, indent=1))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
