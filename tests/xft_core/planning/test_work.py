"""Equal tokens and equal floating-point work, measured in steps of a dense training."""

import pytest

from xft_core.planning.shape import Shape
from xft_core.planning.work import matched_steps, mixing_flops, training_flops
from xft_core.recipe.dense_steps import work_to_match
from xft_core.recipe.load import parse
from xft_core.recipe.sections import Recipe, UpcycleConfig, WorkToMatch

SHAPE = Shape(hidden_size=64, ffn_size=256, num_layers=4, vocabulary=1000, query_size=64, key_size=64, gated=True, tied=True)
MOE = UpcycleConfig(num_experts=8, num_experts_per_tok=6)


def work(**fields: object) -> WorkToMatch:
    return WorkToMatch.model_validate({"kind": "flops", "upcycle": MOE, "epochs": 4.0, "max_steps": None} | fields)


def test_equal_work_is_equal_to_half_a_step() -> None:
    steps = matched_steps(work(mixing_epochs=1.0, mixing_batch_size=64), SHAPE, sequences=6400, batch_size=64, length=512)
    moe, dense = (training_flops(SHAPE, upcycle, 512) for upcycle in (MOE, None))
    wanted = 4 * 6400 * moe + 6400 * mixing_flops(SHAPE, 512)
    assert steps * 64 * dense == pytest.approx(wanted, abs=0.5 * 64 * dense)
    assert steps > 2 * 400  # six experts: far more than the dense model's 400 steps


def test_equal_tokens_count_the_mixing_too() -> None:
    tokens = work(kind="tokens", upcycle=None, mixing_epochs=1.0, mixing_batch_size=32)
    assert matched_steps(tokens, SHAPE, sequences=6400, batch_size=64, length=512) == 500
    limited = work(kind="tokens", upcycle=None, mixing_epochs=1.0, mixing_batch_size=32, mixing_max_steps=10, max_steps=50)
    assert matched_steps(limited, SHAPE, sequences=6400, batch_size=64, length=512) == 55


def test_equal_work_counts_a_teacher_cross_validation_and_the_start_of_the_routers() -> None:
    def steps(**fields: object) -> int:
        given = work(mixing_epochs=1.0, mixing_batch_size=64, **fields)
        return matched_steps(given, SHAPE, 6400, 64, 512, train_rows=25600)

    of_dense = training_flops(SHAPE, None, 512)
    plain = steps()
    taught = 6400 * SHAPE.forward_flops(512, MOE) / of_dense
    assert steps(distills=True) == pytest.approx(plain + taught / 64, abs=1)
    validated = 8 * 6400 * mixing_flops(SHAPE, 512) / of_dense
    assert steps(cross_validation=True) == pytest.approx(plain + validated / 64, abs=1)
    started = MOE.model_copy(update={"experts_from": "checkpoints", "router_start": "trained"})
    tokens = 256 * 128  # a hundredth of the rows, which four to a sequence are 128 tokens each
    of_start = tokens * (8 * SHAPE.forward_flops(128) + 2 * 4 * 64**2 + 10 * SHAPE.forward_flops(128, started))
    assert steps(upcycle=started, router_start="trained") == pytest.approx(plain + of_start / of_dense / 512 / 64, abs=1)
    assert of_start / of_dense / 512 / 64 > 5
    assert steps(kind="tokens", upcycle=None, router_start="trained") == 500 + 4


def test_what_a_run_learns_is_in_the_work_to_match() -> None:
    started = ["upcycle.experts_from=checkpoints", "upcycle.router_start=trained"]
    taught = ["merge.objective=distill", "merge.cross_validation=true", "sft.epochs=4"]
    found = work_to_match(parse(Recipe, {}, started + taught), "flops")
    assert found is not None and (found.router_start, found.distills, found.cross_validation) == ("trained", True, True)
    plain = work_to_match(parse(Recipe, {}), "flops")
    assert plain is not None and not {"router_start", "distills", "cross_validation"} & plain.recorded().keys()  # keys stay


def test_one_active_expert_of_one_is_the_dense_model_but_for_the_router() -> None:
    vanilla = UpcycleConfig(num_experts=4, num_experts_per_tok=1, shared_expert=False)
    assert training_flops(SHAPE, vanilla, 512) == pytest.approx(training_flops(SHAPE, None, 512), rel=0.02)
    fusion = UpcycleConfig(num_experts=4, num_experts_per_tok=1, shared_expert=False, mode="fusion")
    assert training_flops(SHAPE, fusion, 512) == training_flops(SHAPE, None, 512)


def test_the_runs_of_a_soup_share_it_and_dense_starts_count() -> None:
    whole = matched_steps(work(), SHAPE, sequences=6400, batch_size=64, length=512)
    assert matched_steps(work(runs=4), SHAPE, sequences=6400, batch_size=64, length=512) == round(whole / 4)
    started = matched_steps(work(epochs=2.0, dense_epochs=2.0), SHAPE, sequences=6400, batch_size=64, length=512)
    assert 400 < started < whole
    assert matched_steps(work(epochs=0.0, dense_epochs=4.0), SHAPE, sequences=6400, batch_size=64, length=512) == 400


def test_plans_know_what_rivals_cost() -> None:
    from xft_core.planning.plan import make_plan
    from xft_core.planning.stage_plan import DataSize

    data = DataSize(train_rows=6400, held_out_rows=10, tokens_per_row=500)

    def plan(*changes: str) -> dict[str, float]:
        return {stage.role: stage.flops or 0.0 for stage in make_plan(parse(Recipe, {}, list(changes)), SHAPE, data)}

    plain = plan()
    assert plain["sft_moe"] > 2 * plain["sft_baseline"]
    matched = plan("baseline.match=[epochs,flops]", "baseline.runs=2", "baseline.wise=0.5")
    assert matched["sft_baseline"] == plain["sft_baseline"] == matched["sft_run_1"]
    assert matched["sft_flops"] == pytest.approx(plain["sft_moe"] + plain["mix"], rel=0.05)
    assert matched["sft_flops_run_0"] == pytest.approx(matched["sft_flops"] / 2, rel=0.02)
    assert {"sft_soup", "sft_wise_0_5", "row_losses_merged"} <= matched.keys()
    assert plan("upcycle.experts_from=branches", "upcycle.branches_by=clusters")["cluster_rows"] > plain["sft_baseline"] / 20
    ridge, trained = ([plan(f"upcycle.router_start={router}", f"upcycle.experts_from={start}")["upcycle"]
                       for start in ("branches", "checkpoints")] for router in ("ridge", "trained"))
    assert plain["upcycle"] == 0 < ridge[0] < ridge[1] < plain["sft_baseline"] / 10  # seven checkpoints measure 256 rows each
    of_moe = 256 * 500 * SHAPE.forward_flops(500, MOE)
    assert [b - a for a, b in zip(ridge, trained, strict=True)] == pytest.approx([10 * of_moe] * 2)  # 4 passes there and back
    branches = plan("upcycle.experts_from=branches")
    assert branches["sft_branch_1"] == pytest.approx(plain["sft_baseline"] / 2 / 7, rel=0.05)


@pytest.mark.parametrize("router", ["learned", "frozen", "hashed", "random", "by_example"])
def test_every_router_trains_the_experts_that_a_token_uses(router: str) -> None:
    upcycle = UpcycleConfig.model_validate(
        {"num_experts": 4, "num_experts_per_tok": 1, "shared_expert": False, "router": router})
    assert training_flops(SHAPE, upcycle, 128) == pytest.approx(training_flops(SHAPE, None, 128), rel=0.01)
