"""Who may come in: those with the token; and of those on this machine, programs, not the web pages that they show."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megavlm.platform.errors import ConfigError

from .limits import Refused

TOKEN = "MEGAVLM_SERVE_TOKEN"  # the environment variable
SHORTEST = 16  # characters of a token


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(file: Path | None) -> str | None:
    """The token in `file`, else that of the environment, else None; raises ConfigError for one that is none."""
    try:
        token = os.environ.get(TOKEN) if file is None else file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the token: {error}", where="--token-file") from None
    if token is not None and (len(token) < SHORTEST or not re.fullmatch(r"[\x21-\x7e]+", token)):
        raise ConfigError(
            f"the token is not {SHORTEST} or more printable characters without spaces",
            where=TOKEN if file is None else "--token-file",
            fix="make one: python -c 'import secrets; print(secrets.token_urlsafe())' > token",
        )
    return token


@dataclass(frozen=True, repr=False)
class Door:
    """Checks what a request's head says. Without a token, those come in who name this machine as it is called here."""

    host: str
    token: str | None

    def check(self, headers: Mapping[str, str]) -> None:
        """Raise Refused unless the request carries the token, where there is one."""
        self.check_host(headers)
        if self.token is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(_digest(given.strip()), _digest(self.token))  # as long for any wrong one
        if scheme.lower() != "bearer" or not same:
            raise Refused(401, "this server wants its token: Authorization: Bearer ...", code="invalid_api_key")

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Raise Refused for a web page that has its own name point at this machine (DNS rebinding)."""
        if not is_loopback(self.host):
            return
        name = re.sub(r":\d*$", "", headers.get("host", "")).strip("[]").lower()
        if not is_loopback(name):
            raise Refused(403, "this server answers to localhost only", code="wrong_host")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
