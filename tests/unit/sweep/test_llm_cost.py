"""What language models take: planned by the model's own tokenizer, counted, and stopped by a budget that a later run goes on from."""

import io
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llmkt_ray import cli
from llmkt_ray.api import Study
from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.errors import StudyError
from llmkt_ray.profiles import cost as cost_module
from llmkt_ray.profiles import generate as generate_module
from llmkt_ray.profiles.cost import Accounts, Prices, plan_cost, planned
from llmkt_ray.profiles.engines.backend import Answer, Outcome
from llmkt_ray.profiles.engines.llm import LlmEngine
from llmkt_ray.profiles.engines.registry import engine_of
from llmkt_ray.profiles.generate import generate
from llmkt_ray.profiles.prompts import EstimatedTokens, Prompt
from llmkt_ray.profiles.table import KIND
from llmkt_ray.profiles.tokenizer import ModelTokens
from llmkt_ray.report.load import load
from llmkt_ray.report.reproducibility import card_tables
from llmkt_ray.results.folder import study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.show import llm_line, plan_tables
from llmkt_ray.study import BudgetConfig, LlmPrice, ProfileConfig, ResourcesConfig, StudyConfig, TaskResources
from llmkt_ray.study_file import parse_study
from llmkt_ray.sweep.llm_cost import accounts_of, llm_lines, money_spent
from llmkt_ray.sweep.plan import make_plan
from llmkt_ray.sweep.run import run_study, store_of
from tests.films import film_split
from tests.llm.tiny_llama import build_tiny_llama
from tests.tiny import USERS, tiny_study

QUIET = Console(file=io.StringIO())
WRITER = {"llm": "openai", "model": "stub", "name": "Stub", "block_size": 8}


class Stub:
    """100 prompt and 20 output tokens a user."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def identity(self) -> dict[str, Any]:
        return {"backend": "stub"}

    def run(self, blocks: list[list[Prompt]], seed: int) -> Generator[tuple[int, Outcome]]:
        for number, block in enumerate(blocks):
            self.asked += [prompt.user_id for prompt in block]
            yield number, [Answer(f"Likes {prompt.messages[1]['content'][-300:]}", "stop", 100, 20) for prompt in block]

    def close(self) -> None:
        pass


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    stub = Stub()

    def engine(config: ProfileConfig, resources: TaskResources | None = None) -> Any:
        return LlmEngine(config, stub, EstimatedTokens) if config.llm == "openai" else engine_of(config)

    for module in (generate_module, cost_module):
        monkeypatch.setattr(module, "engine_of", engine)
    return stub


def _study(folder: Path, **changes: Any) -> StudyConfig:
    prices = {"llm": {"Stub": {"prompt": 10.0, "output": 50.0, "tokens_per_s": 100}}}
    return tiny_study(folder, **{"profiles": [WRITER], "resources": prices} | changes)


def _printed(study: StudyConfig) -> str:
    plan, store = make_plan(study, store_of(study)), store_of(study)
    console = Console(file=io.StringIO(), width=200)
    for part in plan_tables(plan, Ledger(study_folder(study)), list(llm_lines(plan, store))):
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def _cells(table: str, label: str) -> list[str]:
    [line] = [line for line in table.splitlines() if line.startswith(label)]
    return line.removeprefix(label).replace("<= ", "").split()


def test_a_budget_of_tokens_stops_cleanly_and_a_larger_one_goes_on(tmp_path: Path, stub: Stub) -> None:
    first = run_study(_study(tmp_path, budget={"llm_tokens": 2_000}), executor="loop", console=QUIET)
    assert first.ran == 0
    assert first.left_out == 6
    assert first.stopped is not None
    assert "the budget of 2,000 LLM tokens (spent 2,880), with 24 texts of 'Stub' kept for the next run" in first.stopped
    assert len(stub.asked) == 24  # three blocks of eight: not one more is asked than the block that reaches it
    again = run_study(_study(tmp_path, budget={"llm_tokens": 2_000}), executor="loop", console=QUIET)
    assert (again.ran, len(stub.asked)) == (0, 24)
    rest = run_study(_study(tmp_path), executor="loop", console=QUIET)
    assert (rest.ran, rest.failed, rest.stopped) == (6, 0, None)
    assert sorted(stub.asked) == sorted({f"u{user}" for user in range(USERS)})
    study = _study(tmp_path)
    (node,) = [node for node in make_plan(study, store_of(study)).profiles if node.config.llm == "openai"]
    notes = store_of(study).manifest(KIND, node.key).notes
    assert notes["cost"] == pytest.approx(USERS * (100 * 10 + 20 * 50) / 1e6)
    assert notes["tokens_per_s"] is None  # half of it was read from part files


def test_money_for_tokens_counts_towards_the_budget(tmp_path: Path, stub: Stub) -> None:
    spent = run_study(_study(tmp_path, budget={"money": 0.03}), executor="loop", console=QUIET)
    assert (spent.ran, len(stub.asked)) == (0, 16)  # 0.016 a block of eight


def test_plan_before_and_after(tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    study = _study(tmp_path)
    before = _printed(study)
    assert not (tmp_path / "results").exists(), "a plan leaves nothing behind"
    assert f"<= {USERS * 220:,}" in before
    assert "in money for 1 of 1 sets that have a price" in before
    assert "100 tokens/s an engine, stated" in before
    assert not stub.asked
    run_study(study, executor="loop", console=QUIET)
    after = _printed(study)
    assert _cells(after, "toy, Stub: planned") == _cells(before, "toy, Stub: planned"), "the plan of before stands beside what was taken"
    money = f"{USERS * (100 * 10 + 20 * 50) / 1e6:.2f}"
    assert _cells(after, "toy, Stub: took") == [str(USERS), f"{USERS * 100:,}", f"{USERS * 20:,}", "0.00", money]
    assert "language models will take" not in after
    folder = study_folder(study)
    [table] = [table for table in card_tables(load(folder)) if table.title.startswith("Language models")]
    planned, taken = table.rows
    assert planned[:4] == ("Stub", "toy", "1", "planned")
    assert [*planned[4:6], planned[6].removeprefix("\u2264 "), *planned[7:]] == _cells(before, "toy, Stub: planned")
    assert taken == ("Stub", "toy", "1", "taken", *_cells(after, "toy, Stub: took"))
    most = sum(int(cell.replace(",", "")) for cell in _cells(before, "toy, Stub: planned")[1:3])
    expected = f"language models: {USERS * 120:,} tokens of at most {most:,} planned, {money} in money of at most {planned[8]} planned"
    llm = Study(study).status().llm
    assert llm is not None
    assert llm_line(llm) == f"{expected}, for 1 finished set of texts"
    monkeypatch.setattr(Study, "from_yaml", lambda path: Study(study))
    cli.status(Path("study.yaml"))
    assert f"\n{llm_line(llm)}\n" in capsys.readouterr().out
    # Another set by the same model is planned with the speed that was measured.
    other = _study(tmp_path, profiles=[WRITER | {"generation": 1}], resources={})
    assert "tokens/s an engine, measured" in _printed(other)


def test_plan_and_hours_of_engines_on_ones_own_machines(tmp_path: Path, stub: Stub) -> None:
    """What is stored has hours and money of GPUs too, planned with the stated speed and as it was."""
    data = film_split(tmp_path / "films", ArtifactStore(tmp_path / "artifacts"))
    config = ProfileConfig(llm="openai", model="stub", max_tokens=50)
    resources = ResourcesConfig(gpu_hour=3600.0, profiles={"gpus": 1}, llm={config.label: {"tokens_per_s": 10}})
    plan = planned([Prompt("a", (), 150, 9, (1,))], config, Prices(LlmPrice(tokens_per_s=10), 3600.0, 1.0, 1), None, "x")
    assert (plan.gpu_hours, plan.money) == (pytest.approx(200 / 10 / 3600), pytest.approx(200 / 10))
    notes = generate(config, data, ArtifactStore(tmp_path / "artifacts"), study_seed=1, accounts=Accounts(resources, BudgetConfig())).notes
    assert notes["planned"] == plan_cost(config, data, resources, None).as_notes()  # type: ignore[union-attr]
    assert (notes["asked"], notes["planned"]["prompts"], notes["gpu_hours"]) == (40, 40, 0.0)


def test_every_rank_of_every_engine_costs_its_gpu() -> None:
    config = ProfileConfig(llm="vllm", model="m", workers=(1, 3), engine={"tensor_parallel_size": 4, "pipeline_parallel_size": 2})
    resources = ResourcesConfig(gpu_hour=2.0, cpu_hour=0.5, profiles={"cpus": 2, "gpus": 1}, llm={config.label: {"tokens_per_s": 10}})
    prices = Prices.of(config, resources)
    assert (prices.actors, prices.gpus, prices.hour) == (3, 24, 24 * 3.0)
    cost = planned([Prompt("a", (), 3_600 * 30 - 50, 9, (1,))], config.model_copy(update={"max_tokens": 50}), prices, None, "x")
    assert (cost.gpu_hours, cost.money) == (pytest.approx(24), pytest.approx(24 * 3.0))  # 3 engines, 10 tokens/s each, for an hour


def test_finished_profiles_are_not_read_again_for_the_accounts(tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    study = _study(tmp_path)
    run_study(study, executor="loop", console=QUIET)
    plan, store = make_plan(study, store_of(study)), store_of(study)
    monkeypatch.setattr(ArtifactStore, "_checked_bytes", lambda *given: pytest.fail("read what is of no interest"))
    accounts = accounts_of(plan, store)
    assert accounts.tokens == USERS * 120
    assert accounts.money == money_spent(plan, store) == pytest.approx(USERS * (100 * 10 + 20 * 50) / 1e6)
    assert set(accounts.speeds) == {"stub"}


def test_tokens_are_those_of_the_models_own_tokenizer(tmp_path: Path) -> None:
    data = film_split(tmp_path / "films", ArtifactStore(tmp_path / "artifacts"))
    model = str(build_tiny_llama(tmp_path / "model", [f"Film Number {item}" for item in range(60)]))
    config = ProfileConfig(llm="vllm-sync", model=model, max_tokens=50)
    resources = ResourcesConfig(gpu_hour=2.0, profiles={"gpus": 1}, llm={config.label: {"tokens_per_s": 10}})
    cost = plan_cost(config, data, resources, None)
    assert cost is not None
    engine = engine_of(config)
    assert isinstance(engine, LlmEngine)
    tokens = ModelTokens(model)
    assert cost.prompt_tokens == sum(tokens.count_chat(prompt.messages) for prompt in engine.builder(data).build(data))
    assert (cost.prompts, cost.output_tokens, cost.counted_by) == (40, 40 * 50, "the model's tokenizer")
    assert cost.gpu_hours == pytest.approx((cost.prompt_tokens + 2000) / 10 / 3600)
    assert cost.money == pytest.approx(2 * cost.gpu_hours)
    absent = plan_cost(config.model_copy(update={"model": str(tmp_path / "artifacts")}), data, resources, None)
    assert absent is not None
    assert absent.counted_by.startswith("4 characters a token")
    assert absent.gpu_hours is None


def test_parts_of_histories_and_samples_are_counted() -> None:
    config = ProfileConfig(llm="openai", model="m", max_tokens=100)
    prompts = [Prompt("a", (), 500, 9, (1,)), *(Prompt("b", (), 600, 9, (1,), (part, 3)) for part in range(3))]
    cost = planned(prompts, config, Prices.of(config, ResourcesConfig()), None, "x", scale=10)
    assert (cost.prompts, cost.output_tokens) == (50, 5_000)
    assert cost.prompt_tokens == 10 * (500 + 3 * 600 + 200 + 3 * 100)
    assert (cost.money, cost.gpu_hours) == (None, 0)


def test_prices_of_unknown_labels_are_refused() -> None:
    with pytest.raises(StudyError, match=r"resources\.llm entry 'GPT4' is not known; did you mean 'GPT-4'"):
        parse_study(
            "name: a\ndatasets: [ml-100k]\nmodels: [BPR]\nprofiles: [{llm: openai, model: gpt-4, name: GPT-4}]\n"
            "resources: {llm: {GPT4: {prompt: 30}}}"
        )
