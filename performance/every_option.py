"""Run every option past the paper on a real model, each through ``xft compare``: ``python -m performance.every_option``.

    python deployments/fetch_smollm2.py .downloads && python -m performance.every_option [RECIPE] [--report DIRECTORY]
    python -m performance.every_option deployments/recipes/demo.yaml --containing routing_temperature

Takes about an hour of 2 CPU cores and 100 GB in XFT_HOME. Each grid is one comparison, in the experiment of the recipe. Its
first variant is the method of the paper, so all comparisons share that run's stages. The rows are few, so this shows that an
option runs and what it costs, not what it does for the model. The table at the end lists the held-out loss of every
merged model.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

# A few steps on a few rows. Every part is as in a real run: reserved rows to choose on, held-out rows to report.
FEW_ROWS = (
    "name=every-option", "data.max_rows=20", "data.held_out_rows=4", "data.reserved_rows=3", "data.max_length=128",
    "sft.epochs=0.3", "sft.precision=fp32", "merge.precision=fp32",
    "sft.batch_size=2", "sft.micro_batch_size=1", "sft.learning_rate=0.0001", "sft.warmup_steps=1", "merge.method=uniform",
    "merge.batch_size=4", "merge.micro_batch_size=2", "merge.max_steps=2", "merge.rows=reserved", "merge.calibration_rows=4",
    "merge.search_rows=4", "merge.search_trials=3", "merge.ensemble_rows=4", "merge.ensemble_steps=2", "evaluate.benchmarks=[]",
    "upcycle.num_experts=4", "upcycle.num_experts_per_tok=3", "registry.register=none")
GRIDS = (
    "upcycle.normalization=[xft,renormalize,none,granite]",
    "upcycle.router=[learned,frozen,hashed,random,by_example]",
    "upcycle.routing_temperature=[1.0,0.2]",
    "upcycle.shared_gate=[probability,token]",
    "upcycle.routing,upcycle.num_experts_per_tok,upcycle.target_active=[[top_k,3,null],[top_p,4,3.0]]",
    "upcycle.shared_expert,upcycle.num_experts_per_tok=[[true,3],[false,1]]",
    "upcycle.expert_rank=[null,4]",
    "upcycle.num_experts,upcycle.groups,upcycle.expert_rank=[[4,null,null],[5,2,4]]",
    "upcycle.mode,upcycle.shared_expert,merge.method=[[routed,true,uniform],[fusion,false,ewa]]",
    "upcycle.experts_from,upcycle.router_start=[[base,random],[checkpoints,random],[checkpoints,ridge],[checkpoints,trained],"
    "[branches,ridge]]",
    "sft.router_gradient=[chosen,dense]",
    "sft.balance=[loss,bias]",
    "sft.balance_scope=[micro_batch,step]",
    "sft.diversity_weight=[0.0,0.01]",
    "sft.expert_averaging=[0.0,0.01]",
    "sft.average=[none,last_k,ema]",
    "sft.merge_at,sft.merge_checkpoints=[[last,4],[best,2]]",
    "sft.adapter=[none,lora]",
    "merge.method=[uniform,learned,routing,ewa,shared_only,regmean,fisher,task_arithmetic,ties,dare,della,model_stock]",
    "merge.shared_expert_weight=[0.75,0.25]",
    "merge.delta_scale,merge.delta_scale_scope=[[1.0,ffn],[0.7,ffn],[0.7,model]]",
    "merge.search,merge.search_over=[[none,[shared_expert_weight]],[golden,[shared_expert_weight]],"
    "[tpe,[shared_expert_weight,delta_scale]],[cmaes,[shared_expert_weight,delta_scale]]]",
    "merge.ensemble=[none,greedy,learned]",
    "merge.method,merge.objective,merge.granularity,merge.generator=[[uniform,nll,layer,free],[learned,distill,layer,free],"
    "[learned,nll,tensor,free],[learned,nll,block,free],[learned,nll,column,free],[learned,nll,layer,attention],"
    "[learned,nll,layer,graph]]",
    "merge.method,merge.uniform_penalty,merge.smoothness,merge.expert_dropout,merge.cross_validation,merge.headroom="
    "[[uniform,0,0,0,false,false],[learned,0.01,0,0,false,false],[learned,0,0.1,0,false,false],[learned,0,0,0.2,false,false],"
    "[learned,0.01,0,0,true,false],[learned,0,0,0,false,true]]",
    "baseline.average,baseline.runs,baseline.wise=[[none,1,[]],[last_k,2,[0.7]],[ema,1,[0.7]]]",
    "baseline.match=[epochs,tokens,flops]",
)


def main() -> int:
    """Command line entry point. Returns 1 if a comparison fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="deployments/recipes/smollm2_cpu.yaml")
    parser.add_argument("--report", type=Path, help="directory for the comparisons' reports")
    parser.add_argument("--at-once", default="2", help="runs at once")
    parser.add_argument("--containing", nargs="+", default=[""], metavar="TEXT", help="only grids that contain one of these")
    options = parser.parse_args()
    reports = options.report or Path(tempfile.mkdtemp(prefix="every-option-"))
    failed = []
    for number, grid in enumerate(GRIDS, 1):
        if not any(text in grid for text in options.containing):
            continue
        report = reports / f"{number:02d}"
        done = subprocess.run([
            str(Path(sys.executable).with_name("xft")), "compare", options.recipe, "--grid", grid, "--report", str(report),
            "--at-once", options.at_once, *(part for field in FEW_ROWS for part in ("--set", field))])
        failed += [grid] if done.returncode else []
        print(f"{number} of {len(GRIDS)}: {grid}: {'failed' if done.returncode else 'done'}", flush=True)
    print(table(reports))
    for grid in failed:
        print(f"failed: {grid}")
    return int(bool(failed))


def table(reports: Path) -> str:
    """Return a Markdown table with the held-out loss of every variant's merged model, from the reports' first tables."""
    losses: dict[str, str] = {}
    for path in sorted(reports.glob("*/comparison.md")):
        lines = path.read_text(encoding="utf-8").splitlines()
        first = next(number for number, line in enumerate(lines) if line.startswith("| variant"))
        for line in itertools.takewhile(lambda line: line.startswith("|"), lines[first + 2:]):
            name, _, loss = (cell.strip() for cell in line.strip("|").split("|")[:3])
            losses[name] = loss
    rows = [f"| {name} | {loss} |" for name, loss in losses.items()]
    return "\n".join(["| variant | merged held-out loss ↓ |", "|---|---:|", *rows])


if __name__ == "__main__":
    raise SystemExit(main())
