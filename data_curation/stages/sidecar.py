"""The columns of a judging stage's sidecar."""

from __future__ import annotations

import pyarrow as pa


def judging_schema(**columns: pa.DataType) -> pa.Schema:
    """What every judgement says of a sample (kept or not, and why not), then the stage's own columns."""
    judgement = {"key": pa.string(), "keep": pa.bool_(), "reason": pa.string(), "detail": pa.string()}
    return pa.schema(judgement | columns)
