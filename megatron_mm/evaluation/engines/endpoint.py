"""Requests to an OpenAI-compatible server: the key, tries, time limits, and what an error means. Loads no torch."""

from __future__ import annotations

import json
import os
import time
from typing import Any
from urllib.parse import urlsplit

import httpx2

from megavlm.platform.errors import ConfigError, InputError, MegaVLMError

AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # may go better next time
REFUSED = frozenset({401, 403, 404})  # key, rights, path or model: every other request would fare the same
TRIES = 5
FIRST_WAIT = 1.0  # seconds; doubled after every try
LONGEST_WAIT = 60.0
SHOWN = 300  # characters of a server's complaint that are told
MOST_BYTES = 64 << 20  # of an answer


class Endpoint:
    """One server. `key_variable` names the environment variable that holds its API key, which is sent and never told.

    Raises ConfigError for an address that is none, and for a variable that is not set.
    """

    def __init__(self, url: str, key_variable: str | None = None, seconds: float = 600.0) -> None:
        self.url = url.rstrip("/")
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).netloc:
            raise ConfigError(f"'{url}' is no address of a server", fix="give one like http://localhost:8000/v1")
        key = _key(key_variable)
        self._hidden = key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # no redirects: they would take the key to another server
        self._client = httpx2.Client(headers=headers, timeout=seconds, follow_redirects=False)

    def get(self, path: str) -> Any:
        """The JSON at `path`; raises as `post` does."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that the server answers; tried again, with growing waits, where that may help.

        Raises InputError for a request that it will not take, ConfigError where no request can succeed, and
        MegaVLMError when it cannot be reached. From several threads at once.
        """
        return self._ask("POST", path, body)

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        wait = FIRST_WAIT
        for last in [False] * (TRIES - 1) + [True]:
            told, trouble = self._once(method, path, body)
            if not trouble:
                return told
            if last:
                raise MegaVLMError(f"the server gives no answer: {trouble}", where=self.url, fix="see its log")
            time.sleep(min(wait, LONGEST_WAIT))
            wait *= 2

    def _once(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[Any, str]:
        """The answer, or what is wrong and may go better next time."""
        try:
            response = self._client.request(method, self.url + path, json=body)
        except httpx2.HTTPError as error:
            return None, f"{type(error).__name__}: {error}"
        said = self._shown(response.text[:SHOWN])
        if response.status_code in AGAIN:
            return None, f"HTTP {response.status_code}: {said}"
        if response.status_code in REFUSED:
            # of a key that it does not know a server may repeat a part, which nothing could recognise
            shown = said if response.status_code == 404 else response.reason_phrase
            fix = "check the address, the model's name and the key's variable"
            raise ConfigError(f"the server refuses: HTTP {response.status_code}: {shown}", where=self.url, fix=fix)
        if response.status_code != 200:
            raise InputError(f"HTTP {response.status_code}: {said}", where=self.url)
        return _json(response, said), ""

    def _shown(self, text: str) -> str:
        return text.replace(self._hidden, "[key]") if self._hidden else text


def _key(variable: str | None) -> str:
    if variable is None:
        return ""
    found = os.environ.get(variable, "")
    if not found:
        raise ConfigError(f"the environment has no {variable}", fix=f"export {variable} with the server's API key")
    return found


def _json(response: httpx2.Response, said: str) -> Any:
    try:
        if len(response.content) > MOST_BYTES:
            raise ValueError("too long")
        return json.loads(response.content)
    except (ValueError, RecursionError):
        raise InputError(f"the server's answer is no JSON: {said}", where=str(response.url)) from None
