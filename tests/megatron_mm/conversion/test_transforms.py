"""Transforms against row-by-row statements, and as inverses on any shape."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.conversion.transforms import (
    QkvHeads,
    QueryGroups,
    RealHeads,
    Stacked,
    Transform,
    Unsqueezed,
    VocabRows,
)
from megavlm.platform.errors import InputError

SIZES = st.integers(1, 4)


def numbered(*shape: int) -> torch.Tensor:
    """Distinct values, none of them 0."""
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)


def there_and_back(how: Transform, parts: list[torch.Tensor], shape: tuple[int, ...], spec: object) -> torch.Tensor:
    """Ours; checks that `split` undoes `join`, and tells the same shapes without data."""
    whole = how.join(parts, shape, spec)
    assert tuple(whole.shape) == shape
    again = how.split(whole, spec)
    assert len(again) == len(parts) and all(torch.equal(a, b) for a, b in zip(again, parts, strict=True))
    on_meta = how.split(torch.empty(shape, device="meta"), spec)
    assert [part.shape for part in on_meta] == [part.shape for part in parts]
    return whole


@given(groups=SIZES, per_group=SIZES, size=SIZES, width=st.sampled_from([None, 1, 3]))
def test_query_groups(groups: int, per_group: int, size: int, width: int | None) -> None:
    """Weights, and biases (width None)."""
    tail = () if width is None else (width,)
    heads = groups * per_group
    spec = SimpleNamespace(heads=heads, kv_heads=groups, head_dim=size)
    q, k, v = (numbered(n * size, *tail) + 1000 * i for i, n in enumerate((heads, groups, groups)))
    whole = there_and_back(QueryGroups(), [q, k, v], (groups * (per_group + 2) * size, *tail), spec)
    rows = []
    for group in range(groups):
        for head in range(group * per_group, (group + 1) * per_group):
            rows += [q[head * size + d] for d in range(size)]
        rows += [k[group * size + d] for d in range(size)] + [v[group * size + d] for d in range(size)]
    assert torch.equal(whole, torch.stack(rows))


@given(heads=SIZES, dummies=st.integers(0, 3), size=SIZES, width=st.sampled_from([None, 1, 3]), theirs=st.booleans())
def test_heads_of_a_vit(heads: int, dummies: int, size: int, width: int | None, theirs: bool) -> None:
    """Published [q|k|v][head][d], with dummy heads (`theirs`) or without."""
    tail, all_heads = (() if width is None else (width,)), heads + dummies
    spec, published = SimpleNamespace(heads=heads, hidden=heads * size), all_heads if theirs else heads
    qkv = numbered(3, published, size, *tail)
    qkv[:, heads:] = 0
    whole = there_and_back(QkvHeads(dummies=theirs), [qkv.flatten(0, 2)], (3 * all_heads * size, *tail), spec)
    for head in range(all_heads):
        for part in range(3):
            rows = whole[(3 * head + part) * size : (3 * head + part + 1) * size]
            assert torch.equal(rows, qkv[part, head] if head < heads else torch.zeros_like(rows))


@given(heads=SIZES, dummies=st.integers(0, 3), size=SIZES, axis=st.sampled_from([0, 1]))
def test_dummy_heads_are_zeros_behind(heads: int, dummies: int, size: int, axis: int) -> None:
    spec = SimpleNamespace(heads=heads, hidden=heads * size)
    part = numbered(heads * size) if axis == 0 else numbered(5, heads * size)
    shape = (*part.shape[:-1], (heads + dummies) * size)
    whole = there_and_back(RealHeads(axis), [part], shape, spec)
    assert torch.equal(whole[..., : heads * size], part) and not whole[..., heads * size :].any()


@pytest.mark.parametrize("how", [RealHeads(), QkvHeads()])
def test_a_dummy_head_that_learnt_something_is_not_dropped(how: Transform) -> None:
    spec = SimpleNamespace(heads=2, hidden=4)
    with pytest.raises(InputError, match="dummy head"):
        how.split(numbered(18), spec)


def test_stacked_and_unsqueezed() -> None:
    gate, up = numbered(3, 2), numbered(3, 2) + 100
    assert torch.equal(there_and_back(Stacked(2), [gate, up], (6, 2), None), torch.cat([gate, up]))
    there_and_back(Unsqueezed(2), [numbered(1, 1, 5)], (5,), None)
    there_and_back(Unsqueezed(1), [numbered(1, 4, 5)], (4, 5), None)


def test_rows_that_were_not_published_are_zero() -> None:
    how, part = VocabRows(), numbered(3, 2)
    whole = how.join([part], (5, 2), None)
    assert torch.equal(whole[:3], part) and whole.shape == (5, 2) and not whole[3:].any()
    assert how.fits((5, 2), (3, 2)) and how.fits((5, 2), (5, 2))
    assert not how.fits((5, 2), (6, 2)) and not how.fits((5, 2), (3, 3))
