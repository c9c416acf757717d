"""Item knowledge texts by a language model: one prompt an item, no ids in it, one row an item whatever the model does."""

import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.errors import BudgetSpent
from llmkt_ray.profiles.cost import Accounts
from llmkt_ray.profiles.engines import registry
from llmkt_ray.profiles.engines.backend import Answer
from llmkt_ray.profiles.engines.llm import LlmEngine
from llmkt_ray.profiles.items import KIND, plan_item_texts, write_item_texts
from llmkt_ray.profiles.prompts import EstimatedTokens
from llmkt_ray.study import BudgetConfig, ProfileConfig, ResourcesConfig
from tests.films import film_split


class Model:
    """Says something about every item but one, whose first attempt fails, and one that it never answers."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def identity(self):
        return {"model": "stub"}

    def run(self, blocks, seed):
        for number, block in enumerate(blocks):
            answers = []
            for prompt in block:
                line = prompt.messages[1]["content"]
                first = line not in self.asked
                self.asked.append(line)
                if prompt.user_id == self.never or (prompt.user_id == self.late and first):
                    answers.append(Answer(None, error="timeout: no answer"))
                else:
                    answers.append(Answer(f"A text on {line}.", "stop", 9, 5))
            yield number, answers

    def close(self):
        pass


def test_every_item_has_one_row_and_no_id_is_asked(tmp_path, monkeypatch):
    store = ArtifactStore(tmp_path / "artifacts")
    data = film_split(tmp_path / "films", store)
    ids = [str(token) for token in data.item_tokens]
    model = Model()
    model.never, model.late = ids[3], ids[5]
    monkeypatch.setitem(registry.ENGINES, "vllm-sync", lambda config, resources: LlmEngine(config, model, EstimatedTokens))
    config = ProfileConfig(llm="vllm-sync", model="stub", min_coverage=0.5)
    seen = []
    texts = write_item_texts(config, data, store, study_seed=1, progress=lambda done, total: seen.append((done, total)))
    rows = {row["item_id"]: row for row in texts.table.to_pylist()}
    assert list(rows) == ids
    assert rows[ids[3]]["text"] is None
    assert rows[ids[3]]["error"] == "timeout: no answer"
    assert rows[ids[3]]["attempts"] == config.attempts
    assert rows[ids[5]]["text"].startswith("A text on ")
    assert rows[ids[5]]["attempts"] == 2
    titles = data.items.column("title").to_pylist()
    assert all(title in rows[name]["text"] for name, title in zip(ids, titles, strict=True) if name != ids[3])
    assert seen[-1][1] == len(ids)
    assert store.manifest(KIND, texts.key).notes["asked"] == len(model.asked) == len(ids) + config.attempts
    before = len(model.asked)
    assert write_item_texts(config, data, store, study_seed=1).table.equals(texts.table)
    assert len(model.asked) == before, "made once"


def test_every_call_is_charged_and_a_budget_stops_and_goes_on(tmp_path, monkeypatch):
    store = ArtifactStore(tmp_path / "artifacts")
    data = film_split(tmp_path / "films", store)
    model = Model()
    model.never = model.late = None
    monkeypatch.setitem(registry.ENGINES, "vllm-sync", lambda config, resources: LlmEngine(config, model, EstimatedTokens))
    config = ProfileConfig(llm="vllm-sync", model="stub", block_size=8)
    priced = ResourcesConfig(llm={config.label: {"prompt": 1e6}})  # 1 a token
    accounts = Accounts(priced, BudgetConfig(llm_tokens=300))
    with pytest.raises(BudgetSpent, match=r"300 LLM tokens \(spent 336\), with 24 texts"):
        write_item_texts(config, data, store, study_seed=1, accounts=accounts)
    assert (len(model.asked), accounts.tokens, accounts.money) == (24, 24 * 14, 24 * 9)
    rest = Accounts(priced, BudgetConfig())
    texts = write_item_texts(config, data, store, study_seed=1, accounts=rest)
    assert (len(model.asked), rest.tokens, rest.money) == (60, 60 * 14, 60 * 9)
    notes = store.manifest(KIND, texts.key).notes
    assert (notes["prompt_tokens"], notes["output_tokens"], notes["cost"], notes["resumed_rows"]) == (540, 300, 540, 24)
    planned = plan_item_texts(config, data, priced, None)
    assert notes["planned"] == planned.as_notes()
    assert (planned.prompts, planned.output_tokens) == (60, 60 * config.max_tokens)
