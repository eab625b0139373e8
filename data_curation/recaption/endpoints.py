"""Which endpoints a recipe asks, how, and with which key."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from megavlm.platform.config import Config
from megavlm.platform.errors import ConfigError

from .ask import Manners
from .endpoint import Secret

EACH = 64  # requests: with fewer, a server that answers many at once has room left (our guess, no server was measured)


class Asking(Config):
    """How endpoints are asked; none of it changes what they say."""

    concurrency: PositiveInt | None = None  # requests under way at a time, per worker; null: EACH for every server
    attempts: PositiveInt = 6  # requests for one sample, before it is given up
    timeout_seconds: PositiveFloat = 120.0  # for one request
    backoff_seconds: NonNegativeFloat = 0.5  # longest pause after the first failure; doubled with each further one
    longest_pause_seconds: PositiveFloat = 30.0  # also where a server asks for more (Retry-After)
    patience_seconds: PositiveFloat = 120.0  # without any endpoint, before the task fails
    health: str = "models"  # URL, relative to an endpoint's: any answer below 500 means that it lives
    api_key_env: str | None = None  # the environment variable that holds the key; the key itself stands nowhere

    def manners(self, servers: int, **changes: object) -> Manners:
        """As the asking itself takes it, where so many are asked in turn."""
        known = {
            "concurrency": self.concurrency or EACH * servers,
            "attempts": self.attempts,
            "timeout_seconds": self.timeout_seconds,
            "backoff_seconds": self.backoff_seconds,
            "longest_pause": self.longest_pause_seconds,
            "patience_seconds": self.patience_seconds,
            "health": self.health,
        }
        return Manners(**(known | changes))  # type: ignore[arg-type]

    def secret(self) -> Secret:
        """The key; raises ConfigError when the variable is not set, or holds what no header can carry."""
        if self.api_key_env is None:
            return Secret()
        value = os.environ.get(self.api_key_env, "").strip()
        if not value or not (value.isascii() and value.isprintable()):
            what = f"${self.api_key_env} is {'not a key' if value else 'not set'}"
            raise ConfigError(what, where="asking.api_key_env", fix="export it first")
        return Secret(value)

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, name: str | None) -> str | None:
        # whoever writes the key itself here must not see it repeated in an error, a log or a run folder
        if name is not None and not (name.isidentifier() and name.upper() == name):
            fix = "name an environment variable in capitals, such as CAPTIONS_API_KEY; never write the key itself"
            raise ConfigError("api_key_env names no environment variable", where="api_key_env", fix=fix)
        return name


def check_endpoint(url: str) -> str:
    """`url` if it can be an endpoint's base; raises ConfigError, without repeating it where it may hold a secret."""
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query:
        fix = "write http://host:port/v1 and name the key's variable in asking.api_key_env"
        raise ConfigError("an endpoint's URL carries a user, password or query", where="endpoints", fix=fix)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"'{url}' is no endpoint", where="endpoints", fix="write http://host:port/v1")
    return url


def silent(urls: Iterable[str], seconds: float = 2.0) -> str | None:
    """What to say when nobody listens at any of these endpoints; nothing is asked of those that do."""
    names = []
    for url in urls:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((str(parts.hostname), port), seconds).close()
            return None
        except OSError:
            names.append(f"{parts.hostname}:{port}")
    return f"nobody listens at {', '.join(names)}"
