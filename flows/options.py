"""The options of the ``xft`` command. This module imports nothing slow: ``xft run`` reads them before anything else."""

import math
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

from flows.shipped import shipped_or_file

RUNS_AT_ONCE = 4  # more than compute slots: a run that waits for a stage of another run leaves its slot to a third


def parser() -> ArgumentParser:
    """Build the parser of ``xft`` and its commands."""
    made = ArgumentParser(
        prog="xft", description="Turn a dense code model into a Mixture-of-Experts, fine-tune it, merge it back, measure it.")
    made.add_argument("--version", action="version", version=f"xft {_version()}")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run the pipeline with a recipe; finished stages are reused")
    _add_recipe(run)
    run.add_argument(
        "--again", action="store_true", help="record a new run in Prefect and MLflow even if there is nothing left to do")
    compare = commands.add_parser(
        "compare", help="run variants of a recipe and compare them; finished stages are reused")
    _add_recipe(compare)
    compare.add_argument(
        "--grid", action="append", default=[], metavar="SECTION.FIELD=[VALUE,...]",
        help="what varies, for example seed=[0,1]; repeatable; fields that change together: a.b,a.c=[[1,2],[3,4]]")
    compare.add_argument("--report", type=Path, metavar="DIRECTORY", help="directory to write the report, data and plots to")
    compare.add_argument("--experiment", metavar="NAME", help="MLflow experiment (default: the recipe's name, -comparison)")
    compare.add_argument(
        "--at-once", type=int, default=RUNS_AT_ONCE, choices=range(1, 17), metavar="N",
        help="number of variants to run at once, 1 to 16 (default %(default)s)")
    study = commands.add_parser(
        "study", help="test a ladder of claims: arms at several seeds, each tuned; finished stages are reused")
    study.add_argument(
        "study", type=shipped_or_file("studies"), metavar="STUDY.yaml", help="file, or name of a shipped study: demo")
    study.add_argument("--report", type=Path, metavar="DIRECTORY", help="directory to write the report, data and plots to")
    study.add_argument(
        "--at-once", type=int, default=RUNS_AT_ONCE, choices=range(1, 17), metavar="N",
        help="number of runs at once, 1 to 16 (default %(default)s)")
    evaluate = commands.add_parser(
        "evaluate", help="measure any model on benchmarks and on held-out data; existing measurements are reused")
    evaluate.add_argument("model", metavar="MODEL", help="directory, Hub name, S3 address, or demo:model")
    evaluate.add_argument(
        "--benchmark", action="append", default=[], metavar="BENCHMARK",
        help="humaneval, mbpp, multipl-e/js, ds1000, a .jsonl file, demo:benchmark.jsonl; repeatable (default: none)")
    evaluate.add_argument(
        "--held-out", action="append", default=[], metavar="DATA",
        help="instruction data to measure the loss on; repeatable")
    evaluate.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE",
        help="set a field of the sections generate, evaluate or model, or seed or experiment")
    _add_publish(commands.add_parser(
        "publish", help="send a registered model to the Hub, S3 or a directory, and check the copy"))
    init = commands.add_parser("init", help="write a commented recipe for a model and data, and check it against both")
    init.add_argument("recipe", type=Path, nargs="?", metavar="RECIPE.yaml", help="file to write (default: the model's name)")
    init.add_argument("--model", required=True, help="directory, Hub name, S3 address, or demo:model")
    init.add_argument("--data", required=True, help="instruction data: a .json, .jsonl or .parquet file")
    init.add_argument(
        "--benchmark", action="append", default=[], metavar="BENCHMARK",
        help="humaneval, a .jsonl file, demo:benchmark.jsonl; repeatable (default: humaneval and mbpp, if they are here)")
    init.add_argument("--all", action="store_true", help="also write every other field with its default, as a comment")
    chat = commands.add_parser("chat", help="talk to a model: merged, dense, upcycled or stock")
    chat.add_argument("model", metavar="MODEL", help="directory, Hub name, S3 address, or demo:model")
    chat.add_argument(
        "--template", choices=("auto", "chat", "magicoder"), default="auto",
        help="chat: the tokenizer's; magicoder: the paper's, for one instruction; auto (default): chat if the model has one")
    chat.add_argument("--seed", type=int, default=0, help="seed of sampling (default 0)")
    chat.add_argument(
        "--set", action="append", default=[], metavar="generate.FIELD=VALUE",
        help="for example generate.temperature=0.7, generate.max_new_tokens=200")
    fetch = commands.add_parser(
        "fetch", help="download benchmarks from their authors, checked by sha256; without names: list them")
    fetch.add_argument(
        "benchmark", nargs="*", metavar="BENCHMARK", help="humaneval, mbpp, ds1000, multipl-e/js; multipl-e: all languages")
    completion = commands.add_parser("completion", help="print a shell completion script for xft's commands and options")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    _add_plan(commands.add_parser(
        "plan", help="estimate memory, disk and time of every stage; refuse a recipe that cannot fit"))
    ui = commands.add_parser("ui", help="show runs in Prefect's and MLflow's web pages until Ctrl-C")
    ui.add_argument("--prefect-port", type=int, default=4200)
    ui.add_argument("--mlflow-port", type=int, default=5000)
    ui.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS",
        help="address to listen on (default 127.0.0.1), MLflow's pages at /mlflow; other machines need a password")
    ui.add_argument(
        "--public-address", metavar="URL", help="address for other machines: http://name:port, or https://name of a proxy")
    _add_store(commands.add_parser("store", help="list or verify the store's artifacts, or remove unused ones"))
    commands.add_parser("relocate", help="correct the addresses of a home (XFT_HOME) that was moved or copied")
    return made


def _version() -> str:
    from importlib.metadata import version

    return version("xft-pipeline")


def _add_recipe(command: ArgumentParser) -> None:
    command.add_argument(
        "recipe", type=shipped_or_file("recipes"), metavar="RECIPE.yaml", help="file, or name of a shipped recipe: demo")
    command.add_argument(
        "--recommended", action="store_true",
        help="use the settings that did best on the demo's model instead of the paper's (docs/study.md); --set overrides them")
    command.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="override one field")


def _add_publish(publish: ArgumentParser) -> None:
    publish.add_argument("model", metavar="MODEL", help="models:/NAME@champion or models:/NAME/3")
    publish.add_argument("--hub", default="", metavar="OWNER/NAME", help="repository on the Hub (token: HF_TOKEN)")
    publish.add_argument("--public", action="store_true", help="make the repository public (default: private)")
    publish.add_argument("--token-block", default="", metavar="NAME", help="Prefect Secret block that holds the Hub token")
    publish.add_argument("--s3", default="", metavar="ADDRESS", help="s3://bucket/prefix")
    publish.add_argument(
        "--directory", default="", metavar="DIRECTORY",
        help="directory to create (default without a destination: published/NAME-VERSION in XFT_HOME)")
    publish.add_argument("--licence", default="", help="the model's licence for its card, by the Hub's name for it")
    publish.add_argument("--data-licence", default="", help="licence of the instruction data for the card, in words")


def _add_plan(plan: ArgumentParser) -> None:
    _add_recipe(plan)
    plan.add_argument("--grid", action="append", default=[], metavar="SECTION.FIELD=[VALUE,...]",
                      help="plan a comparison of these variants, see xft compare")
    plan.add_argument("--model-config", type=Path, metavar="FILE", help="config.json of a model that is not here")
    plan.add_argument("--memory", type=float, metavar="GB", help="plan for this much memory (default: this machine's)")
    plan.add_argument("--device-memory", type=float, metavar="GB", help="accelerator memory; 0: none (default: this machine's)")
    plan.add_argument("--disk", type=float, metavar="GB", help="free disk (default: this machine's)")
    plan.add_argument("--flops", type=_positive(float), metavar="TFLOP/s", help="sustained rate (default: probed here)")
    plan.add_argument("--rows", type=_positive(int), metavar="N", help="number of training rows, if the data is not here")
    plan.add_argument("--tokens-per-row", type=_positive(float), metavar="N", help="average number of tokens per row")


def _add_store(store: ArgumentParser) -> None:
    actions = store.add_subparsers(dest="action", required=True, metavar="ACTION")
    ls = actions.add_parser("ls", help="list artifacts: stage, key, size, age, and the recipe that made each")
    verify = actions.add_parser("verify", help="check every file by size and sha256")
    gc = actions.add_parser("gc", help="show, or with --yes remove, everything that no run of the last days uses")
    for action in (ls, verify, gc):
        action.add_argument("--s3", action="store_true", help="use the object store (XFT_STORE), not the local one")
    gc.add_argument("--days", type=float, default=30, help="days that a run keeps what it used (default 30)")
    gc.add_argument("--yes", action="store_true", help="remove; without it nothing changes")


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise ValueError
        return value

    parse.__name__ = "number above 0"  # argparse says: invalid ... value
    return parse
