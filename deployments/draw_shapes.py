"""Build a tiny model that reads pictures, and draw shapes with questions: ``python deployments/draw_shapes.py DIRECTORY``.

Writes to DIRECTORY/shapes a llava model with random weights (0.3 M parameters), its processor, rows.jsonl to tune it on, and
questions.jsonl to evaluate it by exact match. Everything comes from one seed, so every run writes the same files. Does nothing
if they exist. deployments/recipes/shapes.yaml uses them.
"""

import base64
import io
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SEED, ROWS, QUESTIONS = 0, 1200, 90
PIXELS, PATCH = 24, 8
COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220), "yellow": (230, 210, 40)}
SHAPES = ("circle", "square", "bar")
TEMPLATE = (  # picture and question on one line, the answer on the next
    "{% for message in messages %}{% for part in message.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
    "{{ '\\n' if message.role == 'user' else '</s>' }}{% endfor %}")
SPECIAL = ("<s>", "</s>", "<pad>", "<image>")


def main(directory: Path) -> None:
    """Draw, build and write; the result appears complete or not at all."""
    target = directory / "shapes"
    if target.is_dir():
        print(f"{target} already exists")
        return
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        made = Path(scratch) / "shapes"
        made.mkdir()
        rows = [*drawn(random.Random(SEED), ROWS + QUESTIONS)]
        pairs = [(row["question"], row["answer"]) for row in rows]
        write(made / "rows.jsonl", [
            {"image": row["image"], "instruction": row["question"], "response": row["answer"]} for row in rows[QUESTIONS:]])
        write(made / "questions.jsonl", [{"task_id": f"shapes/{number}", **row} for number, row in enumerate(rows[:QUESTIONS])])
        build(made / "model", [text for pair in pairs for text in pair])
        os.replace(made, target)
    print(f"wrote {target}")


def drawn(draws: random.Random, number: int) -> Iterator[dict[str, str]]:
    """Yield different pictures of one to three equal shapes, each with a question about colour, shape or number."""
    from PIL import Image, ImageDraw

    seen = set()
    while len(seen) < number:
        color, shape, count = draws.choice([*COLORS]), draws.choice(SHAPES), draws.randint(1, 3)
        image = Image.new("RGB", (PIXELS, PIXELS), (draws.randint(0, 30),) * 3)
        pencil = ImageDraw.Draw(image)
        for place in draws.sample(range(4), count):
            x, y = 12 * (place % 2) + draws.randint(1, 3), 12 * (place // 2) + draws.randint(1, 3)
            box = (x, y + 3, x + 8, y + 5) if shape == "bar" else (x, y, x + 8, y + 8)
            (pencil.ellipse if shape == "circle" else pencil.rectangle)(box, fill=COLORS[color])
        question, answer = draws.choice([
            ("Which colour?", color), ("Which shape?", shape), ("How many shapes?", ("one", "two", "three")[count - 1])])
        stream = io.BytesIO()
        image.save(stream, "PNG")
        address = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
        if (address, question) not in seen:
            seen.add((address, question))
            yield {"image": address, "question": question, "answer": answer}


def build(directory: Path, texts: list[str]) -> None:
    """Build the model and its processor: 9 tokens per picture."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForImageTextToText, LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=384, special_tokens=[*SPECIAL], initial_alphabet=sorted(alphabet), show_progress=False))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", additional_special_tokens=["<image>"],
        clean_up_tokenization_spaces=False)
    torch.manual_seed(SEED)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(
        "llava", image_token_index=SPECIAL.index("<image>"),
        text_config={"model_type": "llama", "vocab_size": len(fast), "hidden_size": 96, "intermediate_size": 192,
                     "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
                     "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
        vision_config={"model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                       "num_attention_heads": 4, "image_size": PIXELS, "patch_size": PATCH, "projection_dim": 64}),
        dtype=torch.float32)
    with torch.no_grad():  # initialized with the usual 0.02, the tower would give the same output for every picture
        for part in (model.model.vision_tower, model.model.multi_modal_projector):
            for parameter in part.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4)
    model.save_pretrained(directory)
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS}), fast,
        patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE).save_pretrained(directory)


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
