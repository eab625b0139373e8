"""A draft -> the fields of a sample, in the shape that curation exports: messages or a caption, and their origin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..text.sample import BadRow, Turn, conversation

if TYPE_CHECKING:
    from .images import Images
    from .job import Draft

MARK = "<image>"


def fields_of(draft: Draft, origin: dict[str, Any], images: Images, images_first: bool) -> dict[str, Any]:
    """`json` and the images as 0.jpg, 1.png, ...; for a caption `jpg` (or png, ...), `txt` and `json`.

    Raises BadRow: what `conversation` raises, `image_count`, `no_caption`, and the reasons of `Images.fetch`.
    """
    if draft.caption is not None:
        return caption_fields(draft, origin, images)
    turns = [(role, text.replace("\r\n", "\n")) for role, text in draft.turns]
    sample = conversation(with_marks(turns, len(draft.images), images_first), draft.id, draft.source)
    found = [images.fetch(image) for image in draft.images]
    fields: dict[str, Any] = {f"{number}.{ext}": data for number, (ext, data) in enumerate(found)}
    return {
        **fields,
        "json": {"messages": sample.messages, "id": sample.id, "source": {**origin, "origin": sample.source}},
    }


def caption_fields(draft: Draft, origin: dict[str, Any], images: Images) -> dict[str, Any]:
    """One image and its caption."""
    caption = (draft.caption or "").replace("\r\n", "\n").strip()
    if not caption:
        raise BadRow("no_caption", "the caption is empty")
    if len(draft.images) != 1:
        raise BadRow("image_count", f"{len(draft.images)} images with one caption")
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        raise BadRow("invalid_text", f"not Unicode: {error}"[:300]) from None
    ext, data = images.fetch(draft.images[0])
    return {ext: data, "txt": caption, "json": {"id": None if draft.id is None else str(draft.id), "source": origin}}


def with_marks(turns: Sequence[Turn], images: int, first: bool) -> list[Turn]:
    """Turns with an `<image>` mark for every image; raises BadRow image_count where it is not clear which is where.

    Images without any mark stand before the first question, as LLaVA's code puts them. Marks stay where they are,
    unless `first` brings them to the front of their turn. In answers a mark is text.
    """
    marks = sum(text.count(MARK) for role, text in turns if role == "user")
    turns = list(turns)
    if images and not marks:
        place = next((place for place, (role, _) in enumerate(turns) if role == "user"), None)
        if place is None:
            raise BadRow("no_question", "no turn of the user's, so no place for the images")
        turns[place] = ("user", f"{MARK}\n" * images + turns[place][1])
    elif marks != images:
        raise BadRow("image_count", f"{marks} {MARK} mark(s) in the user's turns and {images} image(s)")
    return [(role, in_front(text) if first and role == "user" else text) for role, text in turns]


def in_front(text: str) -> str:
    """A user's text with its marks before it, a line each."""
    return f"{MARK}\n" * text.count(MARK) + text.replace(MARK, "").strip()
