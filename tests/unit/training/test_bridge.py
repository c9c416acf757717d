"""The bridge: RecBole's settings without its Config, its dataset without files, its models without side effects."""

import logging
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from llmkt_ray.errors import TrainingError
from llmkt_ray.training.bridge import shims
from llmkt_ray.training.bridge.dataset import SplitDataset
from llmkt_ray.training.bridge.models import build_model
from llmkt_ray.training.bridge.registry import MODELS, is_reference, model_entry, model_names
from llmkt_ray.training.bridge.settings import hyperparameter_problems, make_settings
from llmkt_ray.transfer.state import random_state_kept

from .conftest import HYPERPARAMETERS

shims.install()

from recbole.data.dataset import Dataset  # noqa: E402
from recbole.model.abstract_recommender import AutoEncoderMixin  # noqa: E402
from recbole.utils import InputType, ModelType, get_model  # noqa: E402


@pytest.fixture
def dataset(data):
    settings = make_settings("BPR", family="general", hyperparameters={}, dataset="synthetic", device="cpu")
    return SplitDataset(settings, data, data.train.positives())


def test_ids_are_joined_by_token(data, dataset):
    for field, tokens, n in (("user_id", data.user_tokens, data.n_users), ("item_id", data.item_tokens, data.n_items)):
        assert dataset.num(field) == n + 1
        assert dataset.id2token(field, 0) == "[PAD]"
        np.testing.assert_array_equal(dataset.token2id(field, tokens.tolist()), np.arange(n) + 1)
        np.testing.assert_array_equal(dataset.id2token(field, np.arange(n) + 1), tokens)


def test_only_train_positives_are_in_the_dataset(data, dataset):
    positives = data.train.positives()
    assert dataset.inter_num == len(positives)
    assert dataset.inter_matrix(form="csr").sum() == len(positives)
    held_out = [(u + 1, i + 1) for part in (data.valid, data.test) for u, i in zip(part.user, part.item, strict=True)]
    matrix = dataset.inter_matrix(form="csr")
    assert all(matrix[pair] == 0 for pair in held_out)


@pytest.mark.parametrize("row", ["user", "item"])
@pytest.mark.parametrize("longest", [None, 5])
@pytest.mark.parametrize("value_field", [None, "rating"])
def test_history_matrix_equals_recboles(dataset, row, longest, value_field):
    with random_state_kept(3):
        ours = dataset._history_matrix(row, value_field, longest)
    with random_state_kept(3):
        theirs = Dataset._history_matrix(dataset, row, value_field, longest)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_registry_is_recboles(data):
    """Every registered model exists in RecBole with the input type and kind of batches that the registry says."""
    for entry in MODELS.values():
        with torch.autograd.set_detect_anomaly(False):  # recbole's sine.py turns it on at import
            model_class = get_model(entry.name)
        if entry.family != "general":
            continue
        if entry.batches == "reference":
            assert model_class.type == ModelType.TRADITIONAL or entry.name == "NCEPLRec"
        elif entry.batches in ("pairwise", "pointwise"):
            assert model_class.input_type == {"pairwise": InputType.PAIRWISE, "pointwise": InputType.POINTWISE}[entry.batches]
        else:
            assert issubclass(model_class, AutoEncoderMixin) or entry.name in ("ENMF", "CDAE", "DiffRec", "LDiffRec")
    assert is_reference("EASE")
    assert not is_reference("BPR")


def test_unknown_model_offers_the_closest():
    with pytest.raises(TrainingError, match="did you mean 'NeuMF'"):
        model_entry("NeuMFF")
    assert "SimpleX" in model_names()


def test_settings_are_recboles_defaults_with_ours_on_top():
    settings = make_settings("SimpleX", family="general", hyperparameters={"margin": 0.9}, dataset="x", device="cpu")
    assert (settings["margin"], settings["gamma"], settings["reg_weight"]) == (0.9, 0.5, 1e-05)
    assert settings["train_neg_sample_args"]["sample_num"] == 1
    assert settings["no such key"] is None
    assert "no such key" not in settings


def test_hyperparameters_are_never_evaluated():
    text = "__import__('os').getpid()"
    settings = make_settings("NeuMF", family="general", hyperparameters={"mf_pretrain_path": text}, dataset="x", device="cpu")
    assert settings["mf_pretrain_path"] == text


@pytest.mark.parametrize(
    ("hyperparameters", "told"),
    [
        ({"embeding_size": 8}, "did you mean 'embedding_size'"),
        ({"train_batch_size": 8}, "belongs to the study; set there: batch_size"),
        ({"gpu_id": "0"}, "belongs to the study"),
    ],
)
def test_wrong_hyperparameters_are_told(hyperparameters, told):
    assert told in hyperparameter_problems("BPR", hyperparameters)[0]
    with pytest.raises(TrainingError, match="hyper-parameter"):
        make_settings("BPR", family="general", hyperparameters=hyperparameters, dataset="x", device="cpu")


def test_a_setting_that_learns_from_ratings_is_refused():
    (said,) = hyperparameter_problems("DMF", {"inter_matrix_type": "rating"})
    assert said.startswith("inter_matrix_type 'rating' of DMF learns from ratings")
    assert hyperparameter_problems("DMF", {"inter_matrix_type": "01"}) == []


def test_a_model_that_refuses_its_settings_says_which(data):
    with pytest.raises(TrainingError, match="aggregator must be mean"):
        build_model("SimpleX", data, hyperparameters={"aggregator": "max"}, seed=0)


def test_building_is_seeded_and_separate_from_what_was_drawn_before(data):
    first = build_model("MultiVAE", data, hyperparameters=HYPERPARAMETERS["MultiVAE"], seed=5).module.state_dict()
    torch.rand(7)
    again = build_model("MultiVAE", data, hyperparameters=HYPERPARAMETERS["MultiVAE"], seed=5).module.state_dict()
    other = build_model("MultiVAE", data, hyperparameters=HYPERPARAMETERS["MultiVAE"], seed=6).module.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("model", ["BPR", "NeuMF", "SimpleX", "MultiVAE", "LightGCN"])
def test_scores_are_the_models_own(data, model):
    """All-item scores equal `predict` on each pair, in the split's item order."""
    built = build_model(model, data, hyperparameters=HYPERPARAMETERS[model], seed=2)
    built.module.eval()
    users = torch.tensor([4, 0, 17])
    scores = built.scores(users)
    assert scores.shape == (3, data.n_items)
    for row, user in zip(scores, users.tolist(), strict=True):
        for item in (0, 5, data.n_items - 1):
            pair = built.labelled(torch.tensor([user + 1]), torch.tensor([item + 1]), torch.zeros(1))
            with torch.no_grad():
                assert float(row[item]) == pytest.approx(float(built.module.predict(pair)), abs=1e-5)


@pytest.mark.parametrize(
    "parts", [{}, {"mf_train": False}, {"mlp_train": False}, {"mlp_hidden_size": [12]}, {"mlp_hidden_size": [12, 8, 4]}]
)
def test_neumfs_fast_ranking_is_predict(data, parts):
    built = build_model("NeuMF", data, hyperparameters=HYPERPARAMETERS["NeuMF"] | parts, seed=2)
    built.module.eval()
    ids = torch.tensor([1, 30, 60])
    with torch.no_grad():
        slow = built._pair_scores(ids)
    torch.testing.assert_close(built.scores(ids - 1), slow, atol=1e-6, rtol=0)


def test_a_changed_recbole_is_noticed():
    with pytest.raises(TrainingError, match="is not that of RecBole"):
        shims.expect("model.general_recommender.bpr", "a line that BPR does not have")


@pytest.mark.parametrize(("model", "graph"), [("LightGCN", "norm_adj_matrix"), ("NCL", "norm_adj_mat"), ("NGCF", "norm_adj_matrix")])
def test_the_graph_equals_recboles(model, graph):
    """In a fresh process, where RecBole's own method has not been replaced yet."""
    code = """
import sys
from tests.unit.training.conftest import make_data
from llmkt_ray.training.bridge import graphs, models
from recbole.utils import get_model
name, graph = sys.argv[1:]
model_class = get_model(name)
own = model_class.get_norm_adj_mat
built = models.build_model(name, make_data(), hyperparameters={}, seed=0).module
assert model_class.get_norm_adj_mat is not own
theirs, ours = own(built).to_dense(), vars(built)[graph].to_dense()
assert theirs.count_nonzero() > 1000 and (theirs == ours).all()
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, model, graph], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_dok_update_fills_a_matrix():
    matrix = sp.dok_matrix((3, 3), dtype=np.float32)
    matrix._update({(0, 1): 1, (2, 2): 1})
    assert matrix.tocsr().toarray().sum() == 2


SIDE_EFFECTS = """
import logging, os, random, sys
import numpy as np
sys.argv = ["worker", "--learning_rate=0.5", "--no_such=1+1"]
os.environ["CUDA_VISIBLE_DEVICES"] = "7"
before = (set(os.listdir(".")), list(logging.getLogger().handlers), logging.getLogger().level)
from tests.unit.training.conftest import make_data, make_spec
from llmkt_ray.training.spec import TrialArtifacts
from llmkt_ray.training.trial import run_trial
data = make_data()
result = run_trial(make_spec(data, "BPR", epochs=2), TrialArtifacts(data))
assert result.status == "done"
assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
assert sys.argv[1] == "--learning_rate=0.5"
assert (set(os.listdir(".")), list(logging.getLogger().handlers), logging.getLogger().level) == before
assert "ray" not in sys.modules and "recbole.quick_start" not in sys.modules and "recbole.config" not in sys.modules
"""


def test_a_trial_leaves_the_process_as_it_was(tmp_path):
    """In a fresh process: command line, CUDA_VISIBLE_DEVICES, loggers and working directory are neither read nor changed."""
    root = os.getcwd()
    done = subprocess.run(
        [sys.executable, "-c", SIDE_EFFECTS],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_names_are_known_without_importing_recbole():
    code = (
        "import sys; from llmkt_ray.training.bridge import registry, settings; registry.model_names(); assert 'recbole' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_root_logger_is_not_written_to(data, caplog):
    with caplog.at_level(logging.DEBUG):
        build_model("MultiVAE", data, hyperparameters=HYPERPARAMETERS["MultiVAE"], seed=0)
    assert [record for record in caplog.records if record.name == "root"] == []
    assert random.random() < 1


def test_building_a_sequential_model_does_not_turn_anomaly_detection_on():
    """Recbole's sine.py switches it on for the whole process when the sequential models are imported."""
    code = """
import torch
from tests.unit.training.conftest import make_data
from llmkt_ray.training.bridge.models import build_model
build_model("BPR", make_data(), hyperparameters={}, seed=0)
build_model("SASRec", make_data(), hyperparameters={}, seed=0)
assert not torch.is_anomaly_enabled()
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
