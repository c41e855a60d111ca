"""``python -m xft_core STAGE CONFIG.yaml``: run one stage, or inspect the output of earlier ones.

Exit status: 0 success, 2 a user error that the message explains, 75 a temporary failure (start again), 137 one of a stage's
processes was killed, 1 a bug in XFT.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from xft_core.benchmarks.ds1000.environment import LIBRARIES
from xft_core.errors import StageKilled, XftError
from xft_core.files.temporary import sweep
from xft_core.recipe.field_help import field_help
from xft_core.recipe.load import parse, read_yaml
from xft_core.runtime.exit_codes import ExitCode
from xft_core.runtime.process import command, die_with_parent, drop_launcher_variables, leave_out_torch, quiet_libraries, told
from xft_core.stages.base import StageConfig
from xft_core.stages.configs import STAGES, ImportReferenceStage, MergeMixtureStage
from xft_core.stages.configs.meta_train import MetaTrainStage
from xft_core.stages.run import run_stage

COMMANDS: dict[str, type[StageConfig]] = STAGES | {MetaTrainStage.stage: MetaTrainStage}  # each takes a file of its fields
DESCRIPTION = "Run one stage, or inspect the output of earlier ones."


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parser().parse_args(arguments)
    drop_launcher_variables()
    quiet_libraries()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if options.command == "inspect":
            from xft_core.reporting.inspect import describe

            print(describe(options.directory))
            return ExitCode.DONE
        if options.command == "diff":
            from xft_core.reporting.diff import diff

            print(diff(options.first, options.second, options.page))
            return ExitCode.DONE
        if options.command == "ds1000-environment":
            from xft_core.benchmarks.ds1000 import environment
            from xft_core.files.environment import ds1000_directory

            made = environment.create((options.directory or ds1000_directory()).absolute(), options.libraries)
            print(made.python.parent.parent)
            return ExitCode.DONE
        if getattr(options, "die_with_parent", False):
            die_with_parent()
        if options.command == "join":
            from xft_core.stages.torchrun import join

            join(options.directory, options.node)
            return ExitCode.DONE
        if getattr(options, "print_plan", False):
            _print_plan(_stage_config(options))
            return ExitCode.DONE
        config = _stage_config(options)
        if not config.needs_torch:
            leave_out_torch()
        sweep()
        result = run_stage(config)
        print(json.dumps({"output": str(config.output), "reused": result.reused, "metrics": result.manifest.metrics}, indent=1))
        return ExitCode.DONE
    except XftError as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, StageKilled):
            return ExitCode.KILLED
        return ExitCode.MAY_PASS if error.may_pass else ExitCode.MISTAKE
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"error: {options.command}: {told(error)}", file=sys.stderr)
        return ExitCode.MISTAKE
    except KeyboardInterrupt:
        print("error: interrupted. Start the same command again to continue from the last checkpoint.", file=sys.stderr)
        return ExitCode.INTERRUPTED


def _stage_config(options: argparse.Namespace) -> StageConfig:
    if options.command == "import-reference":
        fields = {"model": str(options.directory), "output": options.output, "rope_base": options.rope_base}
        return parse(ImportReferenceStage, fields, where="import-reference")
    if options.command == "merge-mixture":
        fields = {"model": str(options.directory), "output": options.output or "none", "plan": options.plan,
                  "shared_expert_weight": options.shared_expert_weight}
        return parse(MergeMixtureStage, fields, where="merge-mixture")
    return parse(COMMANDS[options.command], read_yaml(options.config), options.set, where=str(options.config))


def _print_plan(config: StageConfig) -> None:
    """Print the plan that merge-mixture would use, for the user to change."""
    from xft_core.models.safetensors_io import CheckpointReader
    from xft_core.stages.merge_mixture import chosen_plan

    inputs = config.inputs()
    with CheckpointReader(inputs["model"]) as reader:
        print(json.dumps(chosen_plan(reader, inputs.get("plan")).model_dump(), indent=1, ensure_ascii=False))


class _CommandParser(argparse.ArgumentParser):
    """A parser whose help ends with the fields of the command's configuration, if any; built only on request."""

    config: type[StageConfig] | None = None

    def format_help(self) -> str:
        """See ArgumentParser."""
        text = super().format_help()
        return text if self.config is None else f"{text}\nfields of CONFIG:\n{field_help(self.config)}\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m xft_core", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="STAGE", parser_class=_CommandParser)
    for name, config in COMMANDS.items():
        summary = config.summary
        command = commands.add_parser(name, help=summary, description=summary)
        command.config = config
        command.add_argument("config", type=Path, help="YAML (or JSON) file with the stage's fields")
        command.add_argument(
            "--set", action="append", default=[], metavar="FIELD=VALUE", help="override one field; SECTION.FIELD works too")
        command.add_argument("--die-with-parent", action="store_true", help=argparse.SUPPRESS)
    inspect = commands.add_parser("inspect", help="Describe a model directory or an artifact.")
    inspect.add_argument("directory", type=Path)
    diff = commands.add_parser("diff", help="Compare two evaluations of one benchmark, problem by problem.")
    for name in ("first", "second"):
        diff.add_argument(name, type=Path, help="output directory of the evaluate stage, or its results.json")
    diff.add_argument("--page", type=Path, metavar="FILE.html", help="also write both side by side as a web page")
    environment = commands.add_parser(
        "ds1000-environment", help="Create the environment with the libraries that DS-1000 is graded with.",
        description="Install the pinned libraries that DS-1000 is graded with (about 3 GB) into a separate environment.")
    environment.add_argument(
        "directory", type=Path, nargs="?",
        help="default: XFT_DS1000_ENVIRONMENT, or ds1000 in XDG_CACHE_HOME/xft (~/.cache/xft); to use any other directory, "
        "set XFT_DS1000_ENVIRONMENT when grading")
    environment.add_argument(
        "--libraries", nargs="+", default=[], metavar="LIBRARY", choices=LIBRARIES,
        help=f"install only what the problems of these need ({', '.join(LIBRARIES)}); other problems then count as not graded")
    reference = commands.add_parser(
        "import-reference", help="Convert a model that the XFT reference code tuned, to mix, merge and evaluate it here.")
    reference.add_argument("directory", metavar="DIR", help="the reference's model directory, in safetensors")
    reference.add_argument("output", metavar="OUT", type=Path, help="directory to create")
    mixture = commands.add_parser(
        "merge-mixture", help="Merge a stock Mixture-of-Experts (Mixtral, Qwen-MoE, granite) into its dense sibling.",
        description=MergeMixtureStage.summary + " If there is no dense sibling, the command fails and explains why.")
    mixture.add_argument("directory", metavar="MODEL", help="model directory in safetensors, or a Hub name")
    made = mixture.add_mutually_exclusive_group(required=True)
    made.add_argument("output", metavar="OUT", type=Path, nargs="?", help="directory to create")
    made.add_argument("--print-plan", action="store_true", help="only print which tensors would be merged into which")
    mixture.add_argument("--plan", metavar="FILE", type=Path, help="JSON or YAML: merge by this plan")
    share = MergeMixtureStage.model_fields["shared_expert_weight"]
    mixture.add_argument(
        "--shared-expert-weight", type=float, default=share.default, metavar="LAMBDA", help=share.description)
    joining = commands.add_parser(
        "join", help=(
            "Join an sft or mix stage that another machine started (sft.num_nodes): "
            "docs/how-to/several-gpus.md."))
    joining.add_argument("directory", metavar="DIR", type=Path, help="<output>.partial/processes of that stage")
    joining.add_argument("--node", type=int, required=True, metavar="N", help="number of this machine, starting at 1")
    rope_base = ImportReferenceStage.model_fields["rope_base"]
    reference.add_argument("--rope-base", type=float, default=rope_base.default, metavar="BASE", help=rope_base.description)
    return parser


if __name__ == "__main__":
    sys.exit(main())
