"""What one request may cost the server, and how it says no. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Limits:
    """Bounds on what a stranger may ask for; each is an option of `megavlm serve`."""

    body_bytes: int = 32 << 20
    image_pixels: int = 64_000_000  # of all images of a request together
    new_tokens: int = 4096
    waiting: int = 256  # prompts that wait for their batch
    batch: int = 16  # prompts answered side by side


class Refused(Exception):
    """A request that gets no answer: an HTTP status and OpenAI's error object."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        """{"error": {"message", "type", "param", "code"}}."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
