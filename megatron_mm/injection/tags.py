"""What the text calls a tile (NVLM, arXiv 2409.11402, section 4.2), and where tag and tokens go. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from megavlm.platform.images import TilePlace

Tags = Literal["none", "1d", "2d_grid", "2d_box"]
THUMBNAIL = "<tile_global_thumbnail>"
BOX = 1000  # the side of the image in the units of 2-D boxes: our guess, after the paper's examples of grounding


class Placement(NamedTuple):
    """Where a tile goes: its tag's text, whether that stands in the sequence, and whether its visual tokens do.

    What stands not in the sequence stands in the context beside it.
    """

    tag: str
    tag_inline: bool
    inline: bool


def tag(kind: Tags, place: TilePlace, digits: int = 1) -> str:
    """The tag of a tile; "" for none. The formats are the paper's; the box of a thumbnail is our guess.

    With 2 digits as NVLM's published code names the tiles of larger grids: tags of one image have one length.
    """
    if kind == "none":
        return ""
    if kind == "2d_box":
        return _box(place)
    if place.thumbnail:
        return THUMBNAIL[:-1] + "0" * (digits - 1) + ">"
    return f"<tile_{place.number + 1:0{digits}d}>" if kind == "1d" else f"<tile_x{place.column}_y{place.row}>"


def _box(place: TilePlace) -> str:
    """(left, top), (right, bottom) inside the whole image; a thumbnail's is all of it."""
    if place.thumbnail:
        return f"<box> (0, 0), ({BOX}, {BOX}) </box>"
    left, right = (BOX * k // place.columns for k in (place.column, place.column + 1))
    top, bottom = (BOX * k // place.rows for k in (place.row, place.row + 1))
    return f"<box> ({left}, {top}), ({right}, {bottom}) </box>"
