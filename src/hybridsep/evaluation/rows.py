"""Tables of scores in the columns of `evaluation.csv`: one value in each row."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from hybridsep.evaluation.chunks import Chunks

COLUMNS = ("track", "start_s", "method", "search", "selection", "refine", "source", "reference", "metric", "value")


def source_rows(
    chunks: Chunks, protocol: tuple[str, str, str, str], reference: str, values: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Make the rows of metrics -> float [P, B] of every source and chunk; `protocol` is method, search, selection, refine."""
    rows = [
        (track, start, *protocol, source, reference, metric, value[p, b])
        for metric, value in values.items()
        for p, source in enumerate(chunks.names)
        for b, (track, start) in enumerate(zip(chunks.tracks, chunks.start_seconds, strict=True))
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def chunk_rows(chunks: Chunks, method: str, search: str, metric: str, values: np.ndarray | float) -> pd.DataFrame:
    """Make the rows of a metric of every chunk, float [B], or of a figure that all chunks share."""
    each = zip(chunks.tracks, chunks.start_seconds, np.broadcast_to(values, len(chunks)), strict=True)
    rows = [(track, start, method, search, "", "", "", "", metric, value) for track, start, value in each]
    return pd.DataFrame(rows, columns=COLUMNS)


def write_rows(table: pd.DataFrame, path: Path) -> None:
    """Write a table that `read_rows` reads back to the bit."""
    table.to_csv(path, index=False, na_rep="nan")


def read_rows(path: Path) -> pd.DataFrame:
    """Read a table of scores: empty cells are empty text, "nan" is NaN."""
    return pd.read_csv(path, keep_default_na=False, na_values=["nan"])


def rows_where(table: pd.DataFrame, **where: str) -> pd.DataFrame:
    """Return the rows that match all of column = value, for example metric="sdr", selection="blind"."""
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def summarise(table: pd.DataFrame, **where: str) -> pd.DataFrame:
    """Return mean, standard deviation and n over chunks of `rows_where`, by the columns not fixed."""
    table = rows_where(table, **where)
    keys = [c for c in COLUMNS if c not in (*where, "track", "start_s", "value")]
    return table.groupby(keys, sort=False).value.agg(["mean", "std", "count"]).reset_index()
