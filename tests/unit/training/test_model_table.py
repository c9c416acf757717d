"""docs/models.md is what the probe finds."""

from pathlib import Path

import pytest

from benchmarks.transfer.model_table import FAMILIES, class_names, refused, row_of
from llmkt_ray.training.layers import probe_split

DOCUMENT = Path(__file__).parents[3] / "docs" / "models.md"


@pytest.mark.parametrize(
    ("family", "model"),
    [
        ("general", "NeuMF"),
        ("general", "EASE"),
        ("general", "LightGCN"),
        ("general", "RecVAE"),
        ("general", "RaCT"),
        ("context", "DeepFM"),
        ("context", "LR"),
        ("sequential", "SASRec"),
        ("sequential", "S3Rec"),
    ],
)
def test_a_row_of_the_table_is_what_the_probe_finds(family, model):
    assert row_of(model, family, probe_split(n_users=901)) in DOCUMENT.read_text(encoding="utf-8").splitlines()


def test_every_model_of_recbole_has_a_row():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.endswith(refused())
    rows = {line.split("|")[1].strip() for line in text.removesuffix(refused()).splitlines() if line.startswith("| ")}
    assert {name for package in FAMILIES.values() for name in class_names(package)} <= rows
