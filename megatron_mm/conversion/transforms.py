"""How published tensors become one of ours, and back. A handful of small inverses, without arithmetic on values.

`shape` is that of our whole parameter, `spec` the axis' Config. Nothing is copied that a view can say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from megavlm.platform.errors import InputError

Shape = tuple[int, ...]


class Transform(Protocol):
    """`split(join(parts)) == parts`, bit for bit. `split` also runs on the meta device, to learn published shapes."""

    def join(self, parts: Sequence[Tensor], shape: Shape, spec: Any) -> Tensor:
        """Ours, of `shape`, from the published ones."""

    def split(self, whole: Tensor, spec: Any) -> list[Tensor]:
        """The published ones from ours."""

    def fits(self, wanted: Shape, found: Shape) -> bool:
        """Whether a published tensor of shape `found` will do where `split` would give `wanted`."""


class Same:
    """One tensor, as it is. Also the base of those that take no other shape than `split` gives."""

    def join(self, parts: Sequence[Tensor], shape: Shape, spec: Any) -> Tensor:
        """The one part."""
        (part,) = parts
        return part

    def split(self, whole: Tensor, spec: Any) -> list[Tensor]:
        """The whole."""
        return [whole]

    def fits(self, wanted: Shape, found: Shape) -> bool:
        """Only the very same shape."""
        return wanted == found


@dataclass(frozen=True)
class Unsqueezed(Same):
    """Published with `axes` leading axes of size 1."""

    axes: int

    def join(self, parts: Sequence[Tensor], shape: Shape, spec: Any) -> Tensor:
        """[1, ..., *shape] -> shape."""
        return parts[0].reshape(shape)

    def split(self, whole: Tensor, spec: Any) -> list[Tensor]:
        """shape -> [1, ..., *shape]."""
        return [whole[(None,) * self.axes]]


class VocabRows(Same):
    """A table with a row per token. Where the recipe has more rows than were published, the others are zero."""

    def join(self, parts: Sequence[Tensor], shape: Shape, spec: Any) -> Tensor:
        """[published rows, h] -> [spec.vocab, h]."""
        return _grown(parts[0], shape)

    def fits(self, wanted: Shape, found: Shape) -> bool:
        """Fewer rows will do; more would be lost."""
        return found[:1] <= wanted[:1] and found[1:] == wanted[1:]


class Stacked(Same):
    """Several tensors of one shape, one after the other along the first axis: SwiGLU's gate and up."""

    def __init__(self, parts: int) -> None:
        self.parts = parts

    def join(self, parts: Sequence[Tensor], shape: Shape, spec: Any) -> Tensor:
        """[rows, ...] each -> [parts * rows, ...]."""
        return torch.cat(list(parts))

    def split(self, whole: Tensor, spec: Any) -> list[Tensor]:
        """[parts * rows, ...] -> [rows, ...] each."""
        return list(whole.chunk(self.parts))


class QueryGroups(Same):
    """q, k, v (weights or biases) <-> megatron-core's rows: for each query group its queries, its key, its value."""

    def join(self, parts: Sequence[Tensor], shape: Shape, spec: Any) -> Tensor:
        """[heads * d, ...], twice [kv_heads * d, ...] -> [kv_heads * (heads / kv_heads + 2) * d, ...]."""
        return torch.cat([part.unflatten(0, (spec.kv_heads, -1)) for part in parts], dim=1).flatten(0, 1)

    def split(self, whole: Tensor, spec: Any) -> list[Tensor]:
        """The other way."""
        queries = spec.heads // spec.kv_heads * spec.head_dim
        grouped = whole.unflatten(0, (spec.kv_heads, -1))
        return [part.flatten(0, 1) for part in grouped.split([queries, spec.head_dim, spec.head_dim], dim=1)]


class RealHeads(Same):
    """[heads * d] along `axis`, where ours may have dummy heads behind, all zero, and the published tensor has none."""

    def __init__(self, axis: int = 0) -> None:
        self.axis = axis

    def join(self, parts: Sequence[Tensor], shape: Shape, spec: Any) -> Tensor:
        """The published heads, then zeros."""
        return _grown(parts[0], shape)

    def split(self, whole: Tensor, spec: Any) -> list[Tensor]:
        """The real heads; raises InputError where the others are not zero."""
        real = spec.hidden  # heads * d
        _require_zero(whole.narrow(self.axis, real, whole.shape[self.axis] - real))
        return [whole.narrow(self.axis, 0, real)]


class QkvHeads(Same):
    """A ViT's one qkv: published [q|k|v][head][d] <-> megatron-core's [head][q|k|v][d].

    Dummy heads, all zero, stand last in ours; published ones have them with `dummies`, as NVLM-D's release does.
    """

    def __init__(self, dummies: bool = False) -> None:
        self.dummies = dummies

    def join(self, parts: Sequence[Tensor], shape: Shape, spec: Any) -> Tensor:
        """[3 * heads * d, ...] -> [all heads * 3 * d, ...]."""
        by_head = parts[0].unflatten(0, (3, -1, spec.hidden // spec.heads)).transpose(0, 1).flatten(0, 2)
        return _grown(by_head, shape)

    def split(self, whole: Tensor, spec: Any) -> list[Tensor]:
        """The other way; raises InputError where a dummy head that would be left out is not zero."""
        rows = len(whole) if self.dummies else 3 * spec.hidden
        _require_zero(whole[rows:])
        return [whole[:rows].unflatten(0, (-1, 3, spec.hidden // spec.heads)).transpose(0, 1).flatten(0, 2)]


def _grown(part: Tensor, shape: Shape) -> Tensor:
    """`part`, and zeros behind it along every axis that is longer in `shape`."""
    if tuple(part.shape) == shape:
        return part
    whole = part.new_zeros(shape)
    whole[tuple(slice(size) for size in part.shape)] = part
    return whole


def _require_zero(dummy: Tensor) -> None:
    if not dummy.is_meta and bool(dummy.any()):
        raise InputError("a dummy head is not zero, and would be lost", fix="was it trained by other code?")
