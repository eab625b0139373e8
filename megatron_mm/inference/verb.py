"""`megavlm generate`: answers from a trained stage. Loads torch only once everything it was given is checked."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.cli import parser
from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.storage import write_atomic

from ..checkpoints.listing import Source
from ..torchrun import run_on_ranks
from .questions import Question, read_image, read_questions
from .weights import Weights, add_arguments

WORKER = "megavlm.megatron_mm.inference.worker"
PARAMETERS = ("max_new_tokens", "temperature", "top_p", "seed")

EPILOG = """\
examples:
  megavlm generate nvlm-d-mini --stage sft --image photo.jpg "How many squares are there?"
  megavlm generate nvlm-d-mini --stage sft --batch-file questions.jsonl --out answers.jsonl

A line of the batch file is {"prompt": "What is this?", "images": ["a.jpg"]}; it may set id, max_new_tokens,
temperature, top_p and seed. Its answer is a line {"id", "text", "tokens", ...}, or {"id", "error"}.
"""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to generate, and how; plain data, so that it can be handed to other ranks."""

    weights: Weights
    questions: list[Question]
    batch_size: int

    def dump(self) -> str:
        """As JSON."""
        questions = [question.model_dump() for question in self.questions]
        return json.dumps(dataclasses.asdict(self) | {"questions": questions})

    @classmethod
    def load(cls, text: str) -> Request:
        """What `dump` wrote."""
        told = json.loads(text)
        questions = [Question.model_validate(question) for question in told["questions"]]
        return cls(Weights(**told["weights"]), questions, told["batch_size"])


def main(argv: Sequence[str]) -> int:
    """Generate and print, or write the answers of a file."""
    p, args = _arguments(argv)
    _check(p, args)
    source = Weights.of(args).check()
    asked = {key: getattr(args, key) for key in PARAMETERS}
    one = Question.parse(asked | {"prompt": args.prompt or "", "images": tuple(args.images)})
    if args.batch_file is None:
        return _one(args, one, source)
    folder = args.image_folder or args.batch_file.parent
    return _many(args, list(read_questions(args.batch_file, folder, asked)), source)


def _arguments(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    p = parser("generate", epilog=EPILOG)
    add_arguments(p)
    p.add_argument(
        "prompt", metavar="PROMPT", nargs="?", help="the user's turn; <image> marks where an image goes, else in front"
    )
    p.add_argument(
        "--image", dest="images", metavar="FILE", action="append", default=[], help="may be given repeatedly"
    )
    p.add_argument("--batch-file", type=Path, metavar="JSONL", help="questions, one a line, instead of a prompt")
    p.add_argument("--image-folder", type=Path, metavar="DIR", help="of the file's images (default: the file's own)")
    p.add_argument("--out", type=Path, metavar="JSONL", help="where the answers to a batch file go")
    p.add_argument("--batch-size", type=int, default=16, help="questions answered side by side (default 16)")
    p.add_argument("--max-new-tokens", type=int, default=64)
    p.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    p.add_argument("--top-p", type=float, default=1.0, help="sample from the most likely tokens of this total")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--dry-run", action="store_true", help="check everything and load nothing")
    return p, p.parse_args(argv)


def _check(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What argparse does not see: PROMPT or a file, and ranges."""
    if (args.prompt is None) == (args.batch_file is None):
        p.error("give a PROMPT, or --batch-file")
    if args.batch_file is not None and (args.out is None or args.images):
        p.error("--batch-file wants --out, and names its images itself")
    for key in ("max_new_tokens", "batch_size"):
        if getattr(args, key) < 1:
            raise ConfigError(f"--{key.replace('_', '-')} {getattr(args, key)} is less than 1")
    if not 0 < args.top_p <= 1:
        raise ConfigError(f"--top-p {args.top_p} is not in (0, 1]", fix="1 keeps every token")


def _one(args: argparse.Namespace, question: Question, source: Source) -> int:
    for image in question.images:
        read_image(image)
    if args.dry_run:
        return _tell(args, {"dry_run": True}, source, f"would answer from {source.checkpoint}")
    (line,) = answers(Request(Weights.of(args), [question], 1)).splitlines()
    told = json.loads(line)
    if "error" in told:
        raise InputError(told["error"], fix=told["fix"])
    del told["id"]
    return _tell(args, told, source, told["text"])


def _many(args: argparse.Namespace, questions: list[Question], source: Source) -> int:
    bad = sum(question.error is not None for question in questions)
    if args.dry_run:
        told: dict[str, Any] = {"dry_run": True, "questions": len(questions), "failed": bad}
        return _tell(args, told, source, f"would answer {len(questions) - bad} of {len(questions)} questions")
    started = time.monotonic()
    lines = answers(Request(Weights.of(args), questions, args.batch_size)) if questions else ""
    write_atomic(args.out, lines.encode())
    failed = sum("error" in json.loads(line) for line in lines.splitlines())
    told = {"answers": len(questions) - failed, "failed": failed, "out": str(args.out)}
    told["seconds"] = round(time.monotonic() - started, 3)
    return _tell(args, told, source, f"{told['answers']} answers, {failed} without one: {args.out}")


def _tell(args: argparse.Namespace, told: dict[str, Any], source: Source, line: str) -> int:
    told |= {"stage": source.stage, "checkpoint": str(source.checkpoint)}
    print(json.dumps(told, indent=2) if args.json else line)
    return 0


def answers(request: Request) -> str:
    """A line of JSON for each question, made in this process or on the ranks that torchrun starts."""
    with tempfile.TemporaryDirectory() as folder:
        asked, said = Path(folder) / "request.json", Path(folder) / "answers.jsonl"
        asked.write_text(request.dump())
        if request.weights.ranks == 1:
            from .worker import answer

            answer(asked, said)
        else:
            print(f"starting {request.weights.ranks} ranks", file=sys.stderr)
            run_on_ranks(WORKER, [str(asked), str(said)], request.weights.ranks)
        return said.read_text()
