"""What the modules of a tower have in common, as forward passes of tower_costs.py. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable

from .tower_costs import Forward, Values


def normalised(f: Forward, pixels: float, patches: float) -> Values:
    """A tile of `pixels` as so many patch vectors: kernels/tile_normalise.py in plain torch."""
    tile = f.given(pixels, 3, size=1, learns=False)
    values = f.copy(f.copy(tile, size=4), size=4)  # from bytes, and each step of the arithmetic takes the last one's
    ordered = f.copy(values, size=4)
    vectors = f.make(patches, 3 * pixels / patches, ordered)
    f.until_here(values)
    return vectors


def rms_norm(f: Forward, x: Values) -> Values:
    """torch's RMSNorm; of several operations, it keeps its input in float32, and the same divided."""
    if not f.composed_norms:
        return f.norm(x, vectors=1)
    f.weigh(int(x.width))
    wide = f.copy(x, size=4)
    root = f.make(x.rows, 1, f.make(x.rows, x.width, wide, keeps=(wide,), size=4), size=4)
    normed = f.make(x.rows, x.width, wide, root, keeps=(wide, root), size=4)
    scaled = f.make(x.rows, x.width, normed, learns=(normed,), size=4)
    return f.copy(scaled, size=f.size)


def mlp(f: Forward, x: Values, hidden: int, width: int, activation: Callable[[Forward, Values], Values]) -> Values:
    """Linear, activation, linear, with biases."""
    out = f.product(activation(f, f.product(x, hidden)), width)
    f.until_here(x)
    return out


def gelu(f: Forward, x: Values) -> Values:
    """In one operation."""
    return f.activation(x)


def quick_gelu(f: Forward, x: Values) -> Values:
    """x * sigmoid(1.702 x), operation by operation."""
    return f.times(x, f.make(x.rows, x.width, f.copy(x), itself=True))


def self_attention(f: Forward, x: Values, heads: int, seen: float, bias: bool = True) -> Values:
    """Queries, keys and values by a product each, and a last one."""
    width = int(x.width)
    q, k, v = (f.product(x, width, bias) for _ in range(3))
    out = f.product(f.attention(q, k, v, heads, seen, width), width, bias)
    f.until_here(x, q, k, v)
    return out


def softmax(f: Forward, scores: Values) -> Values:
    """In float32, and back."""
    return f.copy(f.make(scores.rows, scores.width, scores, size=4, itself=True), size=f.size)


def query_attention(f: Forward, query: Values, cells: Values, heads: int) -> Values:
    """query_attention.py's: each query has so many of the cells' rows for its own."""
    width, rows, each = int(query.width), query.rows, cells.rows / query.rows
    normed = f.norm(cells)
    scaled = f.copy(f.product(f.norm(query), width, bias=False))
    f.weigh(2 * width**2)
    asks = f.convolution(scaled, rows, heads * width, width / heads)
    scores = f.make(rows, heads * each, asks, normed, keeps=(asks, normed))
    shares = softmax(f, scores)
    seen = f.copy(f.make(rows, heads * width, shares, normed, keeps=(shares, normed)))
    f.mixes(4 * rows * heads * each * width)
    out = f.add(query, f.product(f.convolution(seen, rows, width, width), width))
    f.until_here(cells, normed)
    return out
