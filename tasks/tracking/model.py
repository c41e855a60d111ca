"""The merged model in MLflow's model format: the unchanged model directory, plus the files that MLflow needs.

    merged_model/                       config.json, weights, tokenizer: ``from_pretrained`` loads the directory itself
        README.md, plots/               the model card, and its pictures
        MLmodel, input_example.json     flavors transformers and python_function, signature, input example
        requirements.txt, python_env.yaml
        components/tokenizer/           a copy of the tokenizer's files, where the transformers flavor looks for them

A model that reads pictures has the directory and the card, but no flavors: AutoModelForImageTextToText loads the directory.

Writing this loads no model, so it costs the same for any model. (``mlflow.transformers.log_model`` loads the model, copies it,
and queries the Hub.)
"""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.references import PipelineRun
from tasks.tracking.client import client
from tasks.tracking.files import log_directory
from xft_core.files.temporary import temporary_directory
from xft_core.recipe.sections import Recipe
from xft_core.store.manifest import MANIFEST

MODEL_NAME = "merged_model"
EXAMPLE = "Write a Python function that returns the n-th Fibonacci number."
REQUIREMENTS = ("transformers", "torch", "accelerate", "mlflow")


def log_model(run: PipelineRun, model: Path, card: Path) -> bool:
    """Show the model directory in the run's artifacts as an MLflow model, with ``card`` and the plots.

    Returns False if its weights are not there, because they are larger than XFT_MLFLOW_COPY_LIMIT_MB.
    """
    with temporary_directory("mlflow") as directory:
        write_beside(directory, run, model)
        shutil.copyfile(card, directory / "README.md")
        if (card.parent / "plots").is_dir():
            shutil.copytree(card.parent / "plots", directory / "plots")
        client().log_artifacts(run.mlflow_run_id, str(directory), MODEL_NAME)
    # Not the manifest: it does not list the files added here, and a directory with a manifest must match it.
    return log_directory(run.mlflow_run_id, model, MODEL_NAME, without=(MANIFEST,))


def write_beside(directory: Path, run: PipelineRun, model: Path) -> None:
    """Write into ``directory`` the files that MLflow needs in addition to those of the model directory ``model``."""
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.models.utils import _save_example
    from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.utils.environment import _PythonEnv

    from xft_core.models.tokenizer_files import reads_pictures, tokenizer_files

    if reads_pictures(model):  # flavors take only text: such a model is loaded from its directory
        Model(artifact_path=MODEL_NAME, run_id=run.mlflow_run_id).save(str(directory / "MLmodel"))
        return
    generate = run.recipe.generate
    described = Model(
        artifact_path=MODEL_NAME, run_id=run.mlflow_run_id, metadata=_prompt_template(run.recipe),
        model_size_bytes=sum(path.stat().st_size for path in model.iterdir() if path.is_file()),
        signature=ModelSignature(
            inputs=Schema([ColSpec("string")]), outputs=Schema([ColSpec("string")]),
            params=ParamSchema([ParamSpec("max_new_tokens", "long", generate.max_new_tokens)])))
    _save_example(described, EXAMPLE, str(directory))
    described.add_flavor(
        "transformers", task="text-generation", instance_type="TextGenerationPipeline", model_binary=".",
        pipeline_model_type="AutoModelForCausalLM", components=["tokenizer"], tokenizer_type="AutoTokenizer",
        **_dtype(model))
    pyfunc.add_to_model(
        described, loader_module="mlflow.transformers", python_env="python_env.yaml",
        model_config={"return_full_text": False, "do_sample": generate.temperature > 0})
    described.save(str(directory / "MLmodel"))
    requirements = [f"{package}=={version(package).partition('+')[0]}" for package in REQUIREMENTS]
    (directory / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
    _PythonEnv.current().to_yaml(str(directory / "python_env.yaml"))
    tokenizer = directory / "components" / "tokenizer"
    tokenizer.mkdir(parents=True)
    for path in [*tokenizer_files(model), model / "config.json"]:
        shutil.copyfile(path, tokenizer / path.name)


def _prompt_template(recipe: Recipe) -> dict[str, str] | None:
    """Return the template that MLflow's python_function puts the input into, so that the input can be a plain instruction."""
    if recipe.data.template != "magicoder":
        return None
    from xft_core.data.templates import magicoder_prompt

    return {"prompt_template": magicoder_prompt("{prompt}")}


def _dtype(model: Path) -> dict[str, Any]:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    name = config.get("dtype") or config.get("torch_dtype")
    return {"torch_dtype": f"torch.{name}"} if name else {}
