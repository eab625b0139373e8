"""What a part of a tower costs, told as its module's forward pass: one operation after another. Loads no torch.

A spec writes down what its module does, and everything else follows from that: parameters, FLOPs, what autograd keeps
(a product its input, an activation its input, attention its queries, keys, values and what comes out), and what is
there at one time at most. A tensor that several operations keep counts once, as does its memory.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from .costs import Cost, Setting


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Values:
    """A tensor, the same as itself alone. size: bytes of an element. learns: whether it has a gradient."""

    rows: float
    width: float
    size: float
    learns: bool = True

    @property
    def bytes(self) -> float:
        """Its memory."""
        return self.rows * self.width * self.size


class Step(NamedTuple):
    """An operation. passes: the gradients of what it reads are that of what it makes, and no memory of their own.

    learns: what it keeps where its weight learns, beside what it keeps anyway.
    """

    reads: tuple[Values, ...]
    makes: tuple[Values, ...]
    keeps: tuple[Values, ...]
    passes: bool = False
    learns: tuple[Values, ...] = ()


class Forward:
    """A forward pass on one process, written down operation by operation: each takes tensors and gives one."""

    def __init__(self, setting: Setting) -> None:
        self.size, self.composed_norms = setting.size, setting.composed_norms
        self._given: list[Values] = []
        self._known: set[Values] = set()
        self._steps: list[Step] = []
        self._weights, self._held = 0, 0.0
        self._sums: defaultdict[str, float] = defaultdict(float)  # by the names of Cost's fields

    def given(
        self, rows: float, width: float, size: float | None = None, learns: bool = True, known: bool = False
    ) -> Values:
        """What goes in: somebody else's, and there to the end. known: kept by another part that reads it too."""
        values = Values(rows, width, size or self.size, learns)
        self._known |= {values} if known else set()
        self._given.append(values)
        return values

    def make(
        self,
        rows: float,
        width: float,
        *reads: Values,
        keeps: Iterable[Values] = (),
        size: float | None = None,
        passes: bool = False,
        learns: Iterable[Values] = (),
        extra: Sequence[Values] = (),
        itself: bool = False,
    ) -> Values:
        """Any operation that only reads and writes; see Step. extra: small tensors that it makes and keeps. itself:
        whether it keeps what it makes."""
        made = Values(rows, width, size or self.size, not reads or any(values.learns for values in reads))
        kept = (*keeps, *extra, *([made] if itself else []))
        self._steps.append(Step(reads, (made, *extra), kept, passes, tuple(learns)))
        self._sums["moved"] += made.bytes + sum(values.bytes for values in reads)
        return made

    def held(self, values: float) -> None:
        """So many values are a caller's all along. Where something learns from them, they are kept by its readers."""
        self._held += values * self.size

    def weigh(self, parameters: int) -> None:
        """Parameters that no operation below counts."""
        self._weights += parameters

    def product(self, x: Values, width: int, bias: bool = True) -> Values:
        """[rows, x.width] times a weight, and a bias."""
        self.weigh((int(x.width) + bias) * width)
        return self.convolution(x, x.rows, width, x.width)

    def convolution(self, x: Values, rows: float, width: float, seen: float) -> Values:
        """`seen` multiply-adds to each of rows * width values. Its weights are not counted."""
        made = Values(rows, width, self.size)
        self._steps.append(Step((x,), (made,), (), learns=(x,)))
        self._sums["products"] += 2 * rows * width * seen
        self._sums["entering"] += 2 * rows * width * seen * (not x.learns)
        return made

    def norm(self, x: Values, vectors: int = 2) -> Values:
        """LayerNorm, with weight and bias: of each row it keeps two numbers."""
        self.weigh(int(vectors * x.width))
        return self.make(x.rows, x.width, x, keeps=(x,), extra=(Values(x.rows, 2, self.size),))

    def activation(self, x: Values) -> Values:
        """GELU or SiLU in one operation."""
        return self.make(x.rows, x.width, x, keeps=(x,))

    def scale(self, x: Values) -> Values:
        """Times a weight to each channel."""
        self.weigh(int(x.width))
        return self.make(x.rows, x.width, x, learns=(x,))

    def times(self, x: Values, y: Values) -> Values:
        """Each value with its counterpart."""
        return self.make(x.rows, x.width, x, y, keeps=(x, y))

    def add(self, x: Values, *others: Values) -> Values:
        """Of the shape of x; what is added may be the same for all rows."""
        return self.make(x.rows, x.width, x, *others, size=max(each.size for each in (x, *others)), passes=True)

    def copy(self, x: Values, size: float | None = None) -> Values:
        """In another order or precision."""
        return self.make(x.rows, x.width, x, size=size or x.size)

    def attention(self, q: Values, k: Values, v: Values, heads: int, seen: float, width: float) -> Values:
        """`width` channels, of which each row sees `seen` others: torch's scaled_dot_product_attention, no scores in
        memory. Where q, k and v are one product's, they are one tensor."""
        made = Values(q.rows, width, self.size)
        sums = Values(q.rows, heads, 4)  # a logarithm for each row and head
        self._steps.append(Step(tuple({q: None, k: None, v: None}), (made, sums), (q, k, v, made, sums)))
        self.mixes(4 * q.rows * seen * width)
        return made

    def mixes(self, flops: float) -> None:
        """FLOPs of activations with each other."""
        self._sums["mixing"] += flops

    def exchange(self, x: Values) -> Values:
        """Summed over the tensor-parallel processes, in place."""
        self._sums["exchanged"] += x.bytes
        return x

    def until_here(self, *values: Values) -> None:
        """Somebody holds these, though nothing reads them: a caller's variable."""
        self._steps.append(Step(values, (), ()))

    def cost(self, part: str = "", again: bool = False) -> Cost:
        """All of it. again: whether it is what full recomputation does again at once."""
        passing = {values for step in self._steps for values in step.keeps} - self._known
        kept = passing | {values for step in self._steps for values in step.learns} - self._known
        total, through = (sum(values.bytes for values in each) for each in (kept, passing))
        forward, backward = self._peak(kept) - total, self._backward()
        entrance = again * sum(values.bytes for values in self._given)
        sums = {name: self._sums[name] for name in ("products", "entering", "mixing", "moved", "exchanged")}
        memory = {
            "kept": total,
            "passing": through,
            "spare": max(forward, backward),
            "alone": self._peak(()) + self._held,
        }
        return Cost(self._weights, **sums, **memory, entrance=entrance, part=part)

    def _peak(self, kept: Collection[Values]) -> float:
        """Bytes at the worst moment of the forward pass, when a tensor goes after its last reader, but for the kept."""
        last = {values: i for i, step in enumerate(self._steps) for values in (*step.makes, *step.reads)}
        last |= dict.fromkeys((*self._given, *kept), len(self._steps))
        live = worst = sum(values.bytes for values in self._given)
        for i, step in enumerate(self._steps):
            live += sum(values.bytes for values in step.makes)
            worst = max(worst, live)
            live -= sum(values.bytes for values in {*step.makes, *step.reads} if last[values] == i)
        return worst

    def _backward(self) -> float:
        """Bytes of gradients at the worst moment, less those of what has been let go by then."""
        keepers = Counter(values for step in self._steps for values in {*step.keeps, *step.learns})
        steps = [step for step in self._steps if step.makes]
        gradients = {steps[-1].makes[0]: steps[-1].makes[0].bytes}
        let_go = worst = 0.0
        for step in reversed(steps):
            new = [values for values in step.reads if values.learns and values not in gradients]
            own = {values for values in new if not step.passes or values.size != step.makes[0].size}
            gradients |= {values: values.bytes if values in own else 0.0 for values in new}
            worst = max(worst, sum(gradients.values()) - let_go)
            of_made = gradients.pop(step.makes[0], 0.0)
            if step.passes and new:
                gradients[new[0]] = of_made
            keepers.subtract({*step.keeps, *step.learns})
            let_go += sum(values.bytes for values in {*step.keeps, *step.learns} if not keepers[values])
        return worst


def peak(costs: Iterable[Cost]) -> float:
    """Bytes at the worst moment of parts that learn, one after the other: those behind keep nothing as yet, or no
    longer."""
    kept = worst = 0.0
    for cost in costs:
        kept += cost.kept
        worst = max(worst, kept + cost.spare)
    return worst


def total(costs: Iterable[Cost]) -> Cost:
    """One after the other."""
    return sum(costs, Cost())
