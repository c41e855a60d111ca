"""Fields that no code reads are not part of a stage's key; those that matter are. For greedy answers, tested with real runs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from tests.factories import dense_model
from xft_core.demo import DEMO_DIR
from xft_core.models.loading import load_model
from xft_core.recipe.inactive_fields import plays_no_part
from xft_core.recipe.load import parse
from xft_core.recipe.sections import (
    DataConfig,
    EvaluateConfig,
    GenerateConfig,
    MergeConfig,
    MergeMethod,
    Recipe,
    Section,
    SftConfig,
    UpcycleConfig,
)
from xft_core.recipe.steps import UPCYCLED, pipeline_steps
from xft_core.stages.base import StageConfig
from xft_core.stages.configs import (
    EvaluateStage,
    GenerateStage,
    LmEvalStage,
    MergeStage,
    MixStage,
    NllStage,
    ReportStage,
    SftStage,
    UpcycleStage,
)
from xft_core.stages.run import run_stage, stage_key
from xft_core.stages.upcycle import upcycle as run_upcycle

NONE, DATA = Path("none"), Path("data")
GREEDY: dict[str, Any] = {"temperature": 0.0}
SAMPLED: dict[str, Any] = {"temperature": 0.8}


def generate(seed: int = 0, **fields: Any) -> StageConfig:
    return GenerateStage(output=NONE, model="m", seed=seed, generate=GenerateConfig(**fields))


def mix(seed: int = 0, **fields: Any) -> StageConfig:
    return MixStage(output=NONE, model="m", data=DATA, seed=seed, merge=MergeConfig(**fields))


def upcycle(seed: int = 0, **fields: Any) -> StageConfig:
    return UpcycleStage(output=NONE, seed=seed, upcycle=UpcycleConfig(**fields))


def sft(**fields: Any) -> StageConfig:
    return SftStage(output=NONE, model="m", data=DATA, sft=SftConfig(**fields))


def nll(precision: Any = "fp32", **fields: Any) -> StageConfig:
    return NllStage(output=NONE, precision=precision, data=DataConfig(**fields))


def merge(precision: Any, data: Path | None) -> StageConfig:
    return MergeStage(output=NONE, model="m", coefficients=DATA, data=data, precision=precision)


def evaluate(benchmark: str = "demo:benchmark.jsonl", **fields: Any) -> StageConfig:
    return EvaluateStage(output=NONE, samples=DATA, benchmark=benchmark, evaluate=EvaluateConfig(**fields))


def report(**fields: Any) -> StageConfig:
    return ReportStage(output=NONE, artifacts={}, recipe=Recipe(**fields))


def js(directory: Path) -> str:
    row = {"name": "a", "language": "js", "prompt": "function f(){", "tests": "f()", "stop_tokens": ["\n}"]}
    (directory / "js.jsonl").write_text(json.dumps(row) + "\n")
    return str(directory / "js.jsonl")


FIXED_METHODS = ("uniform", "ewa", "shared_only", "routing")
SAME: list[tuple[StageConfig, StageConfig]] = [
    (generate(0, **GREEDY), generate(1, **GREEDY)), (generate(**GREEDY, top_p=0.5), generate(7, **GREEDY, top_p=0.9)),
    (generate(**GREEDY, base_prompt_style="chat"), generate(**GREEDY)),
    *((mix(0, method=method), mix(1, method=method, learning_rate=0.5, epochs=9, max_steps=3, batch_size=8, micro_batch_size=2,
                                  warmup_steps=1)) for method in FIXED_METHODS),
    *((mix(method=method), mix(method=method, calibration_rows=9)) for method in ("learned", "uniform", "ewa", "shared_only")),
    *((mix(method=method), mix(method=method, objective="distill", granularity="tensor", headroom=True, uniform_penalty=1.0,
                               smoothness=1.0, expert_dropout=0.1, cross_validation=True, generator="free",
                               keep_features=False, block_count=9)) for method in FIXED_METHODS),
    (mix(delta_scale_scope="model"), mix()), (mix(headroom_threshold=1.0), mix()), (mix(block_count=9), mix()),
    (mix(cross_validation=True, uniform_penalty=0.1), mix(cross_validation=True)), (mix(method="ewa", rows="reserved"), mix(
        method="ewa")),
    (upcycle(shared_expert=False, normalization="none"), upcycle(shared_expert=False, normalization="xft")),
    (upcycle(shared_gate_start=0.5), upcycle()), (upcycle(target_active=3), upcycle()),
    (upcycle(shared_expert=False, shared_gate="token"), upcycle(shared_expert=False)),
    (upcycle(router="hashed", router_noise=False), upcycle(router="hashed")),
    (sft(balance="bias", balance_loss_weight=0.5, balance_scope="step"), sft(balance="bias")),
    (nll(split_seed=0), nll(split_seed=1)), (nll(split="a"), nll(split="b")),
    (nll(precision="bf16_mixed"), nll(precision="fp32")),
    (merge("bf16", None), merge("fp32", None)), (merge("bf16_mixed", DATA), merge("fp32", DATA)),
    (evaluate(k=[2, 1, 2]), evaluate(k=[2])), (evaluate(workers=1), evaluate(workers=2)),
    (report(experiment="a", check_fit=False), report(experiment="b")),
]
DIFFERENT: list[tuple[StageConfig, StageConfig]] = [
    (generate(0, **SAMPLED), generate(1, **SAMPLED)), (generate(**SAMPLED, top_p=0.5), generate(**SAMPLED)),
    (generate(**GREEDY), generate(**SAMPLED)), (generate(**GREEDY, max_new_tokens=9), generate(**GREEDY)),
    (generate(**GREEDY, batch_size=9), generate(**GREEDY)), (generate(**SAMPLED, num_samples=2), generate(**SAMPLED)),
    *((mix(**changes), mix()) for changes in (
        {"rows": "reserved"}, {"objective": "distill"}, {"granularity": "column"}, {"headroom": True}, {"uniform_penalty": 0.1},
        {"smoothness": 0.1}, {"expert_dropout": 0.1}, {"cross_validation": True}, {"generator": "graph"},
        {"keep_features": True}, {"delta_scale": 0.7}, {"delta_scale": None})),
    (mix(headroom=True, calibration_rows=9), mix(headroom=True)),
    (mix(method="routing", rows="reserved"), mix(method="routing")),
    (mix(0), mix(1)), (mix(learning_rate=0.5), mix()), (mix(micro_batch_size=2), mix()),
    (mix(method="uniform"), mix(method="ewa")), (mix(method="uniform", precision="fp32"), mix(method="uniform")),
    *((mix(method=method, shared_expert_weight=0.5), mix(method=method)) for method in ("learned", "uniform", "ewa")),
    (mix(method="routing", calibration_rows=9), mix(method="routing")),
    (upcycle(normalization="none"), upcycle()), (upcycle(shared_expert=False), upcycle()), (upcycle(0), upcycle(1)),
    *((upcycle(router=router), upcycle()) for router in ("frozen", "hashed", "random", "by_example")),
    (upcycle(routing_temperature=0.5), upcycle()), (upcycle(shared_gate="token"), upcycle()),
    (upcycle(routing="top_p", target_active=3), upcycle(routing="top_p", target_active=4)),
    (sft(balance="bias"), sft()), (sft(balance_scope="step"), sft()), (sft(router_gradient="dense"), sft()),
    (sft(diversity_weight=0.01), sft()), (sft(score_variance_weight=0.01), sft()),
    # Equal except for rounding is not equal.
    (upcycle(num_experts=2, num_experts_per_tok=2, normalization="none"), upcycle(num_experts=2, num_experts_per_tok=2)),
    (nll(split_seed=0, max_rows=9), nll(split_seed=1, max_rows=9)), (nll(precision="bf16"), nll()), (nll(max_length=99), nll()),
    (nll(path="own/set", split="a"), nll(path="own/set", split="b")), (merge("bf16", DATA), merge("fp32", DATA)),
    (evaluate(k=[1, 2]), evaluate()), (evaluate(min_time_limit=9), evaluate()), (evaluate(memory_limit_mb=999), evaluate()),
    (report(seed=1), report()),
]


def key(config: StageConfig) -> str:
    return stage_key(config, {})


@pytest.mark.parametrize(("one", "other"), SAME)
def test_what_no_code_looks_at_is_not_in_the_key(one: StageConfig, other: StageConfig) -> None:
    assert key(one) == key(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_matters_is(one: StageConfig, other: StageConfig) -> None:
    assert key(one) != key(other)


def test_time_limits_count_where_a_grader_uses_them(tmp_path: Path) -> None:
    one, other = evaluate(js(tmp_path)), evaluate(js(tmp_path), min_time_limit=9, time_limit_factor=9)
    assert one.settings()["evaluate"] == other.settings()["evaluate"]
    assert evaluate(js(tmp_path), memory_limit_mb=999).settings()["evaluate"] != one.settings()["evaluate"]


def test_precision_of_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xft_core.stages.configs.lm_eval.lm_eval_version", lambda: "0")
    keys = [key(LmEvalStage(output=NONE, task="t", precision=name)) for name in ("fp32", "bf16_mixed", "bf16")]  # type: ignore
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("field", ["generate.top_p", "merge.learning_rate", "merge.micro_batch_size", "merge.calibration_rows",
                                   "upcycle.normalization"])
def test_reports_name_what_keys_leave_out(field: str) -> None:
    recipe = Recipe(merge=MergeConfig(method="uniform"), upcycle=UpcycleConfig(shared_expert=False))
    assert plays_no_part(recipe, field)
    assert not plays_no_part(Recipe(generate=GenerateConfig(temperature=1)), "generate.top_p")


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_greedy_answers_are_the_same_for_every_seed_and_sampled_ones_are_not(tmp_path: Path) -> None:
    model = str(dense_model(tmp_path / "model"))
    benchmark = tmp_path / "own.jsonl"
    benchmark.write_text("".join(json.dumps({
        "task_id": f"Own/{index}", "prompt": f"def f{index}(x):\n", "entry_point": f"f{index}", "base_input": [[1]],
        "plus_input": [], "canonical_solution": "    return x\n"}) + "\n" for index in range(3)))

    def answers(seed: int, top_p: float, temperature: float) -> tuple[str, str]:
        stage = GenerateStage(
            output=tmp_path / f"{seed} {top_p} {temperature}", model=model, benchmark=str(benchmark),
            seed=seed, prompt_style="completion",
            generate=GenerateConfig(max_new_tokens=8, precision="fp32", temperature=temperature, top_p=top_p))
        manifest = run_stage(stage).manifest
        return manifest.key, manifest.digest

    assert answers(0, 1.0, 0.0) == answers(1, 0.5, 0.0)
    sampled = [answers(0, 1.0, 1.0), answers(1, 1.0, 1.0), answers(0, 0.5, 1.0)]
    assert len({key for key, _ in sampled}) == len({digest for _, digest in sampled}) == 3


def test_an_upcycled_model_without_a_shared_expert_is_the_same_whatever_its_normalization(tmp_path: Path) -> None:
    manifests = [
        run_stage(UpcycleStage(output=tmp_path / name, model=str(DEMO_DIR / "model"), upcycle=UpcycleConfig(
            num_experts=2, num_experts_per_tok=1, shared_expert=False, normalization=name))).manifest  # type: ignore
        for name in ("xft", "none")]
    assert (manifests[0].key, manifests[0].digest) == (manifests[1].key, manifests[1].digest)


@pytest.mark.parametrize(("family", "num_experts", "change"), [
    ("llama", 2, {}), ("gpt2", 4, {}), ("starcoder2", 4, {"router": "frozen"}), ("llama", 4, {"expert_rank": 2})])
def test_with_one_routed_expert_none_computes_the_bits_of_xft(
        tmp_path: Path, family: str, num_experts: int, change: dict[str, Any]) -> None:
    """Forward, backward and in what it draws, so both variants can share a training."""
    dense_model(tmp_path / "dense", family)
    found = []
    for normalization in ("xft", "none"):
        out = tmp_path / normalization
        out.mkdir()
        config = UpcycleConfig(num_experts=num_experts, num_experts_per_tok=2, normalization=normalization, **change)
        run_upcycle(tmp_path / "dense", out, config, 0)
        model = load_model(out, torch.float32).train()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        torch.manual_seed(0)
        logits_BSV = model(torch.arange(12).reshape(2, 6)).logits
        logits_BSV.logsumexp(-1).mean().backward()
        found.append({"logits": logits_BSV.detach()} | {
            name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 10
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(("fields", "shared"), [
    ({"num_experts": 2, "num_experts_per_tok": 2}, True), ({"num_experts": 4, "num_experts_per_tok": 2}, True),
    ({"num_experts": 4, "num_experts_per_tok": 3}, False), ({"num_experts": 2, "num_experts_per_tok": 1}, False)])
def test_variants_that_compute_the_same_share_their_training(fields: dict[str, Any], shared: bool) -> None:
    def upcycled(normalization: str, gradient: str = "chosen") -> Any:
        recipe = parse(Recipe, {
            "upcycle": fields | {"normalization": normalization}, "sft": {"router_gradient": gradient}})
        return next(step.given["upcycle"] for step in pipeline_steps(recipe) if step.role == UPCYCLED)

    fields = fields | {"shared_expert": fields["num_experts_per_tok"] > 1}
    assert (upcycled("none") == upcycled("xft")) == shared
    assert upcycled("xft").normalization == "xft" and upcycled("renormalize") != upcycled("xft")
    assert upcycled("none", "dense") != upcycled("xft", "dense")


def test_the_help_of_every_field_that_can_be_inactive_says_so_and_of_no_other() -> None:
    changes = [
        ["upcycle.shared_expert=false"], ["upcycle.num_experts=2", "upcycle.num_experts_per_tok=2"],
        ["upcycle.num_experts_per_tok=2"], ["generate.temperature=0.8"], ["upcycle.router=hashed"], ["sft.balance=bias"],
        ["upcycle.mode=fusion", "upcycle.shared_expert=false", "merge.method=ewa"], ["upcycle.expert_rank=4"],
        ["data.reserved_path=rows.jsonl"],
        *([f"merge.method={method}"] for method in get_args(MergeMethod))]
    recipes = [Recipe(), *(parse(Recipe, {}, change) for change in changes)]
    fields = {
        f"{section}.{name}": str(field.description) for section, value in Recipe() if isinstance(value, Section)
        for name, field in type(value).model_fields.items()}
    inactive = {name for name in fields if any(plays_no_part(recipe, name) for recipe in recipes)}
    assert len(inactive) > 10
    assert inactive == {name for name, text in fields.items() if "lays no part" in text}
