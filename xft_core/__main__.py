"""``python -m xft_core STAGE CONFIG.yaml``: run one stage, or look at what some left behind.

Exit status: 0 done, 2 a mistake that the message explains, 75 a failure that may pass (start again), 137 one of a stage's
processes was killed, 1 a fault of ours.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from xft_core.benchmarks.ds1000.environment import LIBRARIES
from xft_core.errors import StageKilled, XftError
from xft_core.files.temporary import sweep
from xft_core.recipe.load import parse, read_yaml
from xft_core.runtime.exit_codes import ExitCode
from xft_core.runtime.process import command, die_with_parent, drop_launcher_variables, leave_out_torch, quiet_libraries, told
from xft_core.stages.base import StageConfig
from xft_core.stages.configs import STAGES, ImportReferenceStage
from xft_core.stages.run import run_stage

DESCRIPTION = "Run one stage, or look at what some left behind."


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
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
    return parse(STAGES[options.command], read_yaml(options.config), options.set, where=str(options.config))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m xft_core", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="STAGE")
    for name, config in STAGES.items():
        summary = config.summary
        fields = [f"  {field}: {info.description}" for field, info in config.model_fields.items()]
        command = commands.add_parser(
            name, help=summary, description=summary + "\n\nfields of CONFIG:\n" + "\n".join(fields).replace("%", "%%"),
            formatter_class=argparse.RawDescriptionHelpFormatter)
        command.add_argument("config", type=Path, help="YAML (or JSON) file with the stage's fields")
        command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override one field")
        command.add_argument("--die-with-parent", action="store_true", help=argparse.SUPPRESS)
    inspect = commands.add_parser("inspect", help="Describe a model directory or a published artifact.")
    inspect.add_argument("directory", type=Path)
    diff = commands.add_parser("diff", help="Compare two evaluations of one benchmark, problem by problem.")
    for name in ("first", "second"):
        diff.add_argument(name, type=Path, help="directory that the evaluate stage made, or its results.json")
    diff.add_argument("--page", type=Path, metavar="FILE.html", help="also write both side by side as a web page")
    environment = commands.add_parser(
        "ds1000-environment", help="Make the environment with the libraries that DS-1000 is graded with.",
        description="Install the pinned libraries that DS-1000 is graded with (about 3 GB) into an environment of their own.")
    environment.add_argument(
        "directory", type=Path, nargs="?",
        help="default: XFT_DS1000_ENVIRONMENT, or ds1000 in XDG_CACHE_HOME/xft (~/.cache/xft); another one than the default "
        "must be named in XFT_DS1000_ENVIRONMENT when grading")
    environment.add_argument(
        "--libraries", nargs="+", default=[], metavar="LIBRARY", choices=LIBRARIES,
        help=f"only what problems of these need ({', '.join(LIBRARIES)}); problems of others then count as not graded")
    reference = commands.add_parser(
        "import-reference", help="Make a model that the XFT reference code tuned one of ours, to mix, merge and evaluate it.")
    reference.add_argument("directory", metavar="DIR", help="the reference's model directory, in safetensors")
    reference.add_argument("output", metavar="OUT", type=Path, help="directory to make")
    joining = commands.add_parser(
        "join", help=(
            "Be one of the machines of an sft or mix that another machine started (sft.num_nodes): "
            "docs/how-to/several-gpus.md."))
    joining.add_argument("directory", metavar="DIR", type=Path, help="<output>.partial/processes of that stage")
    joining.add_argument("--node", type=int, required=True, metavar="N", help="number of this machine, from 1")
    rope_base = ImportReferenceStage.model_fields["rope_base"]
    reference.add_argument("--rope-base", type=float, default=rope_base.default, metavar="BASE", help=rope_base.description)
    return parser


if __name__ == "__main__":
    sys.exit(main())
