"""`Report`: sections of tables, charts, pictures and text, written as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ..cli import version
from ..runs.lines import write_whole
from . import charts, spans
from .cases import Case, runs
from .format import Cell, cell
from .panels import Panel
from .spans import Span

RESOURCES = Path(__file__).parent / "resources"
PICTURES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n": "image/png", b"GIF8": "image/gif", b"RIFF": "image/webp"}


@dataclasses.dataclass
class Section:
    """A heading and the blocks under it, already HTML."""

    title: str
    anchor: str
    intro: str = ""
    blocks: list[Markup] = dataclasses.field(default_factory=list)


class Report:
    """Blocks go under the last `section`. All text is escaped; nothing in the file asks for anything outside it.

    The page reads without JavaScript, carries a content security policy that forbids any, and follows the reader's
    light or dark setting (charts too).
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self.sections = [Section("", "top")]
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(RESOURCES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._page = environment.get_template("report.html")
        self._blocks: Any = environment.get_template("blocks.html").module

    def section(self, title: str, intro: str = "") -> None:
        """Begin a section; `intro` says in a sentence or two what the reader sees."""
        anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        self.sections.append(Section(title, f"{anchor or 'section'}-{len(self.sections)}", intro))

    def text(self, text: str) -> None:
        """Plain text; a blank line begins a new paragraph."""
        self._add(self._blocks.text([part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]))

    def verdict(self, text: str, passed: bool | None) -> None:
        """The outcome of a check, marked as passed, failed or (None) undecided."""
        state = {True: "passed", False: "failed", None: "undecided"}[passed]
        self._add(self._blocks.verdict(text, state))

    def figures(self, figures: Mapping[str, Any]) -> None:
        """A row of key figures, each with its label."""
        self._add(self._blocks.figures({label: cell(value) for label, value in figures.items()}))

    def table(self, rows: Iterable[Mapping[str, Any] | Sequence[Any]], columns: Sequence[str], title: str = "") -> None:
        """Rows as mappings by column or as sequences in their order; numbers are aligned, None shows as a dash."""
        cells = [_cells(row, columns) for row in rows]
        heads = [Cell(name, any(row[i].number for row in cells)) for i, name in enumerate(columns)]
        self._add(self._blocks.table(title, heads, cells))

    def line_chart(
        self,
        title: str,
        series: Mapping[str, Sequence[tuple[float, float]]],
        x_label: str = "",
        y_label: str = "",
        log_y: bool = False,
        log_x: bool = False,
        marks: Mapping[str, float] | None = None,
    ) -> None:
        """One line per entry of `series`, a list of (x, y) with gaps where y is NaN; `marks` are levels by name."""
        self._chart(title, charts.lines(series, x_label, y_label, log_y, log_x, marks))

    def bar_chart(
        self,
        title: str,
        bars: Mapping[str, float | Mapping[str, float]],
        x_label: str = "",
        marks: Mapping[str, float] | None = None,
    ) -> None:
        """Horizontal bars by label, or groups of bars by label and series; `marks` are reference lines by name."""
        self._chart(title, charts.bars(bars, x_label, marks or {}))

    def stacked_bars(
        self,
        title: str,
        bars: Mapping[str, Mapping[str, float]],
        x_label: str = "",
        marks: Mapping[str, float] | None = None,
    ) -> None:
        """Horizontal bars by label, each made of the parts of its series side by side; `marks` as in `bar_chart`."""
        self._chart(title, charts.stacked(bars, x_label, marks))

    def spans(self, title: str, rows: Mapping[str, Iterable[Span]], x_label: str = "") -> None:
        """What lasts from when to when, a row for each who does it, the first on top."""
        self._chart(title, spans.svg({name: list(row) for name, row in rows.items()}, x_label))

    def panels(self, title: str, panels: Iterable[Panel]) -> None:
        """Small charts, two side by side where the page is wide enough, each with its heading and its note."""
        drawn = [
            (panel.title, panel.note, Markup(charts.with_prefix(panel.svg(), f"{self._prefix()}{place}-")))
            for place, panel in enumerate(panels)
        ]
        self._add(self._blocks.panels(title, drawn))

    def picture(self, title: str, data: bytes, caption: str, width: int) -> None:
        """One encoded picture, as wide as the page has room for and at most `width` CSS pixels."""
        self._add(self._blocks.picture(title, _data_uri(data), caption, int(width)))

    def cases(self, title: str, cases: Iterable[Case], size: int = 144) -> None:
        """Rows of pictures in boxes of `size` CSS pixels with what is to be said about them together."""
        rows = [
            ([(_data_uri(data), text) for data, text in case.pictures], [(label, runs(t)) for label, t in case.texts])
            for case in cases
        ]
        self._add(self._blocks.cases(title, rows, int(size)))

    def gallery(self, title: str, pictures: Iterable[tuple[bytes, str]], size: int = 144) -> None:
        """Encoded pictures (JPEG, PNG, GIF, WebP) with captions, shown in boxes of `size` CSS pixels.

        Bytes that are no picture show as an empty box with their caption: broken files are what some reports are about.
        """
        self._add(self._blocks.gallery(title, [(_data_uri(data), caption) for data, caption in pictures], int(size)))

    def write(self, path: Path | str) -> Path:
        """Write the file (whole or not at all) and return its path."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, self.html())
        return target

    def html(self) -> str:
        """The page as text."""
        return self._page.render(
            title=self.title,
            subtitle=self.subtitle,
            sections=[section for section in self.sections if section.title or section.blocks],
            style=Markup((RESOURCES / "style.css").read_text()),
            created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=version(),
        )

    def _chart(self, title: str, svg: str) -> None:
        self._add(self._blocks.chart(title, Markup(charts.with_prefix(svg, self._prefix()))))

    def _prefix(self) -> str:
        """Of the ids in the next block."""
        return f"c{sum(len(section.blocks) for section in self.sections)}-"

    def _add(self, block: Markup) -> None:
        self.sections[-1].blocks.append(Markup(block))


def _cells(row: Mapping[str, Any] | Sequence[Any], columns: Sequence[str]) -> list[Cell]:
    values = [row.get(name) for name in columns] if isinstance(row, Mapping) else list(row)
    if len(values) != len(columns):
        raise ValueError(f"a row of {len(values)} values under {len(columns)} columns: {values!r}")
    return [cell(value) for value in values]


def _data_uri(data: bytes) -> str:
    """The picture as a data: URI, or "" for what is none."""
    kind = next((kind for magic, kind in PICTURES.items() if data.startswith(magic)), None)
    return f"data:{kind};base64,{base64.b64encode(data).decode()}" if kind else ""
