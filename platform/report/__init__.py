"""Reports: one self-contained HTML file, and the table of who adds what to a run's report."""

from .builder import Report
from .cases import Case
from .panels import Density, Histogram
from .sections import REPORT_SECTIONS, add_sections
from .spans import Span

__all__ = ["REPORT_SECTIONS", "Case", "Density", "Histogram", "Report", "Span", "add_sections"]
