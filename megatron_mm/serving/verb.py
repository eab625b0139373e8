"""`megavlm serve`: a trained stage behind OpenAI's API. Loads torch only once everything it was given is checked."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.cli import parser
from megavlm.platform.errors import ConfigError, MegaVLMError, MissingPackage

from ..checkpoints.listing import Source
from ..inference.weights import Weights, add_arguments
from ..torchrun import started
from .door import TOKEN, is_loopback, read_token
from .limits import Limits
from .wishes import Wishes

WORKER = "megavlm.megatron_mm.serving.worker"
LOOK_SECONDS = 0.2
OPTIONS = {  # of Limits: option, help
    "body_bytes": ("--max-body-bytes", "of a request"),
    "image_pixels": ("--max-image-pixels", "of all images of a request together"),
    "new_tokens": ("--max-new-tokens", "of one answer"),
    "waiting": ("--max-waiting", "prompts that wait; more are refused with status 429"),
    "batch": ("--max-batch", "prompts answered side by side"),
}

EPILOG = """\
examples:
  megavlm serve nvlm-d-mini --stage sft
  megavlm serve nvlm-d-72b --tp 8 --host 0.0.0.0 --token-file token
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """How to serve; plain data, so that it can be handed to other ranks. The token itself is never in it."""

    weights: Weights
    model: str
    host: str
    port: int
    token_file: str | None
    limits: Limits

    @classmethod
    def load(cls, text: str) -> Options:
        """From the JSON of dataclasses.asdict."""
        told = json.loads(text)
        return cls(**told | {"weights": Weights(**told["weights"]), "limits": Limits(**told["limits"])})


def main(argv: Sequence[str]) -> int:
    """Serve until a signal says otherwise; what is being answered then is finished."""
    args = _arguments(argv)
    weights = Weights.of(args)
    source = weights.check()
    limits = Limits(**{key: getattr(args, key) for key in OPTIONS})
    name = args.model_name or f"{source.run.root.name}/{source.stage}"
    token_file = str(args.token_file) if args.token_file else None
    options = Options(weights, name, args.host, args.port, token_file, limits)
    _check(options)
    if args.dry_run:
        told = _about(options, source) | {"dry_run": True}
        print(json.dumps(told) if args.json else f"would serve {name} ({source.checkpoint}) on {args.host}")
        return 0
    print(f"loading {name} from {source.checkpoint}", file=sys.stderr, flush=True)
    return _here(options, source, args.json) if weights.ranks == 1 else _on_ranks(options, source, args.json)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    p = parser("serve", epilog=EPILOG)
    add_arguments(p)
    p.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine only)")
    p.add_argument("--port", type=int, default=8000, help="0: any that is free (default 8000)")
    p.add_argument("--token-file", type=Path, metavar="FILE", help=f"holds the bearer token (default: ${TOKEN})")
    p.add_argument("--model-name", metavar="NAME", help="what requests call the model (default: RUN/STAGE)")
    for field in dataclasses.fields(Limits):
        option, text = OPTIONS[field.name]
        p.add_argument(
            option, dest=field.name, type=int, metavar="N", default=field.default, help=f"{text} (%(default)s)"
        )
    p.add_argument("--dry-run", action="store_true", help="check everything and load nothing")
    return p.parse_args(argv)


def _check(options: Options) -> None:
    """What can be wrong before torch is loaded; raises ConfigError or MissingPackage."""
    for key, (option, _) in OPTIONS.items():
        if getattr(options.limits, key) < 1:
            raise ConfigError(f"{option} {getattr(options.limits, key)} is less than 1")
    if not 0 <= options.port < 1 << 16:
        raise ConfigError(f"--port {options.port} is no port", fix="0 is any that is free")
    token = read_token(Path(options.token_file) if options.token_file else None)
    if token is None and not is_loopback(options.host):
        raise ConfigError(
            f"others could reach {options.host}, and there is no token",
            where="--host",
            fix=f"give --token-file FILE or ${TOKEN}, or leave --host out",
        )
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise MissingPackage(f"serving needs {package}", fix="pip install 'megavlm[serve]'")


def _about(options: Options, source: Source, **more: Any) -> dict[str, Any]:
    about = {"model": options.model, "stage": source.stage, "checkpoint": str(source.checkpoint)}
    return {**about, "tp": options.weights.tp, "pp": options.weights.pp, **more}


def _tell(options: Options, source: Source, ready: dict[str, Any], as_json: bool) -> None:
    """The one line of a server that is ready."""
    line = f"serving {options.model} at {ready['url']} (process {ready['pid']}); Ctrl-C or TERM ends it"
    print(json.dumps(_about(options, source, **ready)) if as_json else line, flush=True)


def _here(options: Options, source: Source, as_json: bool) -> int:
    from .worker import serve

    serve(options, lambda ready: _tell(options, source, ready, as_json))
    return 0


def _on_ranks(options: Options, source: Source, as_json: bool) -> int:
    """torchrun starts the ranks; this process tells when they are ready, and hands a wish to end on to rank 0."""
    with tempfile.TemporaryDirectory() as folder, Wishes() as wishes:
        given, ready = Path(folder) / "options.json", Path(folder) / "ready.json"
        given.write_text(json.dumps(dataclasses.asdict(options)))
        with started(WORKER, [str(given), str(ready)], options.weights.ranks, output=sys.stderr) as process:
            code = _watch(process, ready, wishes, lambda told: _tell(options, source, told, as_json))
    if code:
        raise MegaVLMError(f"a rank of the server failed with exit code {code}", fix="its message stands above")
    return 0


def _watch(
    process: subprocess.Popen[bytes], ready: Path, wishes: Wishes, tell: Callable[[dict[str, Any]], None]
) -> int:
    """Until torchrun ends, or somebody wants an end while the model is still being loaded; its exit code."""
    told: dict[str, Any] | None = None
    passed_on = 0
    while (code := process.poll()) is None:
        if told is None and ready.exists():
            told = json.loads(ready.read_text())
            tell(told)
        if wishes.count > passed_on:
            if told is None:
                return 0
            os.kill(told["pid"], signal.SIGTERM)
            passed_on += 1
        time.sleep(LOOK_SECONDS)
    return code
