"""One rank of a server: the model in the main thread, and on rank 0 the HTTP side in another."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette

from megavlm.platform.errors import ConfigError, MegaVLMError
from megavlm.platform.processes import die_with
from megavlm.platform.storage import write_atomic

from ..backend import shutdown
from ..data.build import StageData
from ..inference.load import load_stage
from ..model import VisionLanguageModel
from .app import App
from .crew import Crew
from .desk import Desk, attend, follow
from .door import Door, read_token
from .engine import Engine
from .prompts import Prompts
from .verb import Options
from .wishes import Wishes

Ready = dict[str, Any]


def serve(options: Options, tell: Callable[[Ready], None]) -> None:
    """Load the weights and serve until told to end; every rank. Rank 0 calls `tell({"url", "pid"})` once it answers.

    Raises ConfigError, before anything is loaded, for an address that cannot be listened at.
    """
    first = os.environ.get("RANK", "0") == "0"
    listener = _listener(options.host, options.port) if first else None
    try:
        source = options.weights.check()
        spec = StageData.of(source.recipe, source.stage)
        model = load_stage(source.run, source.recipe, source.stage, options.weights.parallel, source.checkpoint)
        crew = Crew()
        engine = Engine(model, spec.tokenizer(), crew, options.limits.batch)
        if listener is None:
            follow(engine, crew)
        else:
            desk = Desk(options.limits)
            _answer(_app(options, spec, model, desk), listener, tell, lambda alive: attend(desk, engine, crew, alive))
    finally:
        shutdown()


def _app(options: Options, spec: StageData, model: VisionLanguageModel, desk: Desk) -> Starlette:
    token = read_token(Path(options.token_file) if options.token_file else None)
    prompts, door = Prompts(spec, model, options.limits), Door(options.host, token)
    positions = model.spec.decoder.max_positions
    return App(prompts, desk, options.limits, options.model, positions, door).routes()


def _answer(
    app: Starlette,
    listener: socket.socket,
    tell: Callable[[Ready], None],
    work: Callable[[Callable[[], bool]], None],
) -> None:
    """Run HTTP in a thread, and `work(is_open)` here for as long as that goes on."""
    config = uvicorn.Config(
        app, loop="asyncio", http="h11", ws="none", lifespan="off", log_level="warning",
        access_log=False, server_header=False, proxy_headers=False,
    )  # fmt: skip
    server = uvicorn.Server(config)

    def end(count: int) -> None:
        server.should_exit, server.force_exit = True, count > 1

    thread = threading.Thread(target=server.run, args=([listener],), name="http", daemon=True)
    with Wishes(end):
        thread.start()
        while not server.started and thread.is_alive():
            thread.join(0.02)
        if not server.started:
            raise MegaVLMError("the HTTP server did not start", fix="its message stands above")
        tell({"url": _url(listener), "pid": os.getpid()})
        work(thread.is_alive)
        thread.join()


def _listener(host: str, port: int) -> socket.socket:
    """A socket that holds the port while the model is loaded; nobody is let in before."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        what = f"cannot listen at {host}:{port}: {error.strerror or error}"
        raise ConfigError(what, where="--port", fix="give another --port, or 0 for any that is free") from None
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def main(given: str, ready: str) -> None:
    """What torchrun runs; rank 0 says in the file `ready` that it is."""
    die_with(os.getppid())
    options = Options.load(Path(given).read_text())
    serve(options, lambda told: write_atomic(ready, json.dumps(told).encode()))


if __name__ == "__main__":  # checkpoint loading may start processes that import the main module
    main(*sys.argv[1:])
