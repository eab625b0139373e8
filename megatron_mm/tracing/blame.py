"""Where a walk failed: the module, its sizes and the line, read from the frames that an error came through."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from itertools import pairwise, zip_longest
from types import FrameType

from torch import Tensor, nn

from megavlm.platform.errors import ConfigError, MegaVLMError

from ..parts import OWNERS

BESIDE = ("torch.", "torch._", __package__)  # whose lines say nothing of the model


def explained(error: Exception, rank: str, stage: str) -> ConfigError:
    """The error as one of the recipe: what failed and of which sizes, on which rank in which module, what to change.

    `rank`: which, in words. `stage`: the recipe's stage. One that names its own place and fix keeps them.
    """
    if isinstance(error, MegaVLMError):
        return ConfigError(error.what, where=", ".join(filter(None, [rank, error.where])), fix=error.fix)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    inside = [frame for frame in frames if isinstance(frame.f_locals.get("self"), nn.Module)]
    path = place([frame.f_locals["self"] for frame in inside])
    sizes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in _sizes(inside[-1:]))
    axis = next((name for name in path if name in OWNERS), None)
    return ConfigError(
        f"{_said(error)}{f' [{sizes}]' if sizes else ''}",
        where=", ".join(filter(None, [rank, ".".join(path), _line(error)])),
        fix=f"change {f'model.{axis}' if axis else 'the model'}, or stages.{stage}.parallel",
    )


def place(modules: Sequence[nn.Module]) -> list[str]:
    """The names of modules inside each other, from the outermost's class; wrappers of a single module left out.

    One that is still being built has no name yet, and stands with its class.
    """
    inside = zip_longest(modules, modules[1:])
    chain = [each for each, inner in inside if each is not inner and not _wraps(each, inner)]
    if not chain:
        return []
    names = [_name(outer, inner) for outer, inner in pairwise(chain)]
    return [type(chain[0]).__name__, *(part for name in names for part in name.split(".") if part != "module")]


def _wraps(module: nn.Module, inner: nn.Module | None) -> bool:
    return inner is not None and getattr(module, "module", None) is inner


def _name(outer: nn.Module, inner: nn.Module) -> str:
    held = outer.named_modules() if "_modules" in vars(outer) else ()
    return next((name for name, each in held if each is inner), type(inner).__name__)


def _sizes(frames: Sequence[FrameType]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Shapes of the tensors that a module's method has at hand, and of its own weights."""
    for frame in frames:
        held = dict(frame.f_locals) | vars(frame.f_locals["self"]).get("_parameters", {})
        yield from ((name, tuple(value.shape)) for name, value in held.items() if isinstance(value, Tensor))


def _said(error: Exception) -> str:
    """The first line of its message; of a bare assertion, what was asserted."""
    lines = str(error).strip().splitlines()
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {lines[0] if lines else last.line}"


def _line(error: Exception) -> str:
    """Module and line of the innermost frame that is neither torch's nor the trace's own."""
    found = [(f.f_globals.get("__name__", ""), line) for f, line in traceback.walk_tb(error.__traceback__)]
    ours = [f"{name}:{line}" for name, line in found if not name.startswith(BESIDE)]
    return ours[-1] if ours else ""
