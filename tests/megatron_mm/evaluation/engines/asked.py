"""A text model, what it is taught, and the tasks that it is asked: for the tests of engines and their ranks.

Tasks are YAML files in lm-eval's format over JSON lines, as a laboratory keeps its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

RECIPE: dict[str, Any] = {
    "seed": 1,
    "model": {
        "tiling": {"tile": 28, "max_tiles": 1},
        "encoder": {
            "name": "internvit", "image_size": 28, "patch_size": 7, "layers": 1, "hidden": 32, "heads": 2, "ffn": 64,
        },
        "connector": {"name": "pixel_shuffle_mlp", "hidden": 64},
        "injection": {"name": "inline"},
        "decoder": {
            "name": "qwen2", "layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "ffn": 128, "vocab": 513,
            "max_positions": 160,
        },
    },
    "data": {"tokenizer": "mini", "template": {"name": "chatml", "system": ""}, "sets": {}},
    "stages": {
        "sft": {
            "train": ["decoder"],
            "mixture": {"weights": {"text": 1}, "sequence_length": 128, "packs_per_batch": 2},
            "steps": 4,
            "precision": "fp32",
            "optimizer": {"lr": 0.01, "min_lr": 0.001, "warmup_steps": 2},
        },
    },
}  # fmt: skip
COLOURS = ["red", "green", "blue", "a dark yellow"]
CHOICES = [{"question": f"Item {k} is", "choices": COLOURS, "answer": k % 4} for k in range(12)]
SUMS = [{"question": f"Question: {k} + 1", "answer": str(k + 1)} for k in range(8)]
PROGRAMS = [
    {
        "prompt": f"def add_{k}(n):\n",
        "entry_point": f"add_{k}",
        "test": f"def check(it):\n    assert it(1) == {k + 1}\n    assert it(-5) == {k - 5}\n",
    }
    for k in range(6)
]
TASKS: dict[str, dict[str, Any]] = {
    "local_choice": {
        "output_type": "multiple_choice",
        "fewshot_split": "few",
        "num_fewshot": 2,
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
    },
    "local_sums": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n", "Question:"], "do_sample": False, "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [
            {"name": "number", "filter": [{"function": "regex", "regex_pattern": r"(\d+)"}, {"function": "take_first"}]}
        ],
    },
    "local_code": {
        "output_type": "generate_until",
        "unsafe_code": True,
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{test}}\ncheck({{entry_point}})",
        "generation_kwargs": {"until": ["\ndef", "\n#"], "do_sample": False, "max_gen_toks": 24},
        "metric_list": [{"metric": "bypass", "aggregation": "bypass", "higher_is_better": True}],
    },
    "local_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    },
}
ROWS = {
    "local_choice": {"test": CHOICES, "few": [{**row, "question": f"Thing {k}"} for k, row in enumerate(CHOICES[:6])]},
    "local_sums": {"test": SUMS},
    "local_code": {"test": PROGRAMS},
    "local_text": {"test": [{"question": "Items have colours, and sums have answers. " * k} for k in (1, 9)]},
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% if not loop.last or message['role'] != 'assistant' %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def lessons() -> list[str]:
    """Texts that answer two thirds of what is asked, in its very words."""
    told = [f"Item {k} is {COLOURS[k % 4]}\n" for k in range(12) if k % 3]
    told += [f"Question: {k} + 1\nAnswer: {k + 1}\n" for k in range(8) if k % 3]
    return told + [f"{row['prompt']}    return n + {k}\n#" for k, row in enumerate(PROGRAMS) if k % 3]


def write_tasks(folder: Path) -> Path:
    """The tasks' files."""
    folder.mkdir(parents=True)
    cache = str(folder.parent / "theirs")  # for lm-eval by itself
    for name, task in TASKS.items():
        files = {}
        for split, rows in ROWS[name].items():
            path = folder / f"{name}-{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            files[split] = str(path)
        data = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files, "cache_dir": cache},
            "test_split": "test",
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **data, **task}))
    return folder
