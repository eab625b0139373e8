"""What flows between the axes: feature maps, visual tokens, one packed micro-batch, and what a module is built under.

Importing this loads no torch: tensors are named in annotations only.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from .config import Parallel

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .data.amounts import Amounts
    from .data.shares import Shares
    from .tiles import Tiles

Sizes = tuple[tuple[int, int], ...]  # (height, width), or (rows, columns), of one thing after another


@dataclass(frozen=True)
class FeatureMap:
    """One expert's features of every tile of a micro-batch, tile after tile, row-major inside a tile."""

    values: Tensor  # [tokens, channels], tokens = the sum of the tiles' rows * columns
    grid: tuple[int, int] | None  # rows, columns of each tile; None where they differ
    images: Tensor  # int64 [tiles]: the tile's index in the micro-batch
    expert: str  # which encoder made it
    layer: int  # which of its layers, -1 for the last
    grids: Sizes = ()  # rows, columns of each, where they differ

    @property
    def tiles(self) -> Tensor:
        """The values as [tiles, rows, columns, channels], where all have one grid."""
        assert self.grid is not None, "tiles of many sizes"
        rows, columns = self.grid
        return self.values.view(-1, rows, columns, self.values.shape[-1])


@dataclass(frozen=True)
class VisualTokens:
    """Tokens of the decoder's width, tile after tile."""

    values: Tensor  # [tokens, width]
    segments: Tensor  # int64 [tokens]: index of the tile a token comes from


@dataclass(frozen=True)
class BuildContext:
    """What a module needs to know about its place: layout, precision and pipeline stage.

    `backend.build_context` makes one for the calling process.
    """

    params_dtype: torch.dtype
    parallel: Parallel = field(default_factory=Parallel)
    pre_process: bool = True  # this rank holds the embedding (and with it encoder and connector)
    post_process: bool = True  # this rank holds the output layer
    vp_stage: int | None = None
    recompute: Literal["none", "selective", "full"] = "none"  # activation recomputation in the transformer blocks
    fp8: str | None = None  # Transformer Engine's recipe, by megatron-core's name


@dataclass(frozen=True)
class Context:
    """The tiles of a pack that are read from beside its sequence (NVLM-X and -H), and who sees which.

    Position p sees context tile j when since[j] <= p < until[j], but a position that spells tile k's tag sees only k
    (NVLM 4.3). A context tile is its tag's text, where that stands in the context and not in the sequence, and then
    its visual tokens.
    """

    tiles: Tensor  # int64 [m]: numbers among the pack's tiles, ascending
    since: Tensor  # int64 [m]: the first position of the sequence that sees it
    until: Tensor  # int64 [m]: the end of its sample
    tags: Tensor  # int64 [1, s]: the context tile whose tag this position spells, -1 where none
    tag_ids: Tensor  # int64 [t]: text of tags in the context, tile after tile; none for NVLM-X
    tag_tiles: Tensor  # int64 [t]: the context tile it names


@dataclass(frozen=True)
class PackedBatch:
    """ONE micro-batch, which is ONE packed sequence of s tokens; samples never see each other.

    Packs of a stage all have the same s: pipeline sends want fixed shapes. The padding tail is one more segment.
    """

    tokens: Tensor  # int64 [1, s]; any id stands at the visual positions
    labels: Tensor | None  # int64 [1, s], already the next token; -100 where none; None where nothing is learnt
    loss_weights: Tensor  # float32 [1, s]; 0 where the label is -100
    position_ids: Tensor  # int64 [1, s], from 0 in every sample
    cu_seqlens: Tensor  # int32 [segments + 1], from 0 to s
    tiles: Tiles  # uint8 [n, 3, H, W], RGB; n may be 0. Float of the same range where pixels want a gradient
    visual_index: Tensor  # int64 [inline tiles' tokens]: positions in the sequence, inline tile after inline tile
    inline_tiles: Tensor | None = None  # int64 [k]: the tiles whose tokens stand in the sequence; None for all n
    context: Context | None = None  # None where the injection has none
    visual: Tensor | None = None  # [tiles' tokens, width]: what was made of the tiles elsewhere, in place of them
    tag_values: Tensor | None = None  # [t, width]: the embeddings of context.tag_ids, made on the first pipeline stage
    sizes: Sizes | None = None  # height and width of each tile in pixels, elsewhere or not; None: all are alike
    taught: Tensor | None = None  # [cells, width]: what an objective's teacher makes of the tiles, on the last stage

    @property
    def length(self) -> int:
        """Positions of the sequence, padding included."""
        return self.tokens.shape[1]

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same pack on `device`."""
        return _moved(self, device)


@dataclass(frozen=True)
class StepBatch:
    """One process' part of a global batch: its replica's packs, and the tiles that it decoded for everyone.

    The packs hold no tiles: `shares` says where each tile's tokens go. `problems` are samples of this global batch that
    are unreadable, as (number of the set in the manifest, number in the set): `PackLoader.settled` tells the others.
    """

    packs: list[PackedBatch]
    rows: list[int | None]  # of the manifest, None for a pack that only fills up
    tiles: Tiles  # uint8 [n, 3, H, W]
    shares: Shares
    problems: tuple[tuple[int, int], ...] = ()
    amounts: Amounts | None = None  # of the whole global batch; None where it comes from no manifest
    sizes: Sizes | None = None  # height and width of every tile of the global batch, as `shares` numbers them


def _moved(of: Any, device: torch.device | str) -> Any:
    """A dataclass of tensors, and of dataclasses of tensors, on `device`; what else it holds stays as it is."""
    values = {f.name: getattr(of, f.name) for f in fields(of)}
    moved = {k: v.to(device) for k, v in values.items() if hasattr(v, "to")}
    moved |= {k: _moved(v, device) for k, v in values.items() if is_dataclass(v) and k not in moved}
    return replace(of, **moved)
