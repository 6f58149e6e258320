"""Annotation lists as they lie on disk: CSV, space- or tab-separated text, with or without a header, of any line ends.

    read_list("EmoLabel/list_patition_label.txt", ["name", "code"], delimiter=" ")
    -> name "train_00001.jpg" · code "5" · list "EmoLabel/list_patition_label.txt" · line 1

Every line that is not blank becomes a row or a `Rejected` with its line number; nothing is skipped in silence.
"""

import codecs
import re
from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from ferid_dataset.errors import FeridError
from ferid_dataset.sources.base import Listed, Rejected


def read_list(
    path: str, names: Sequence[str], delimiter: str, header: str | None = None, keep: Sequence[str] | None = None
) -> Listed:
    """The rows of a list as text, white space trimmed, with the file and the line that each comes from.

    Quotes mean nothing: a quoted "(0, 0, 48, 48)" of a comma-separated list is four fields.

    Args:
        path: the file; UTF-8, with or without a byte order mark.
        names: the columns, in the order in which they stand in the file.
        delimiter: what separates the fields of a line.
        header: what the first line begins with if it names the columns; it is then skipped.
        keep: the columns to return; all by default.

    Raises:
        FeridError: the file is missing, empty, or UTF-16.
    """
    rejected: list[Rejected] = []
    bad_lines: list[int] = []

    def reject(row: csv.InvalidRow) -> str:
        bad_lines.append(row.number)
        if row.text.strip():
            reason = f"the line has {row.actual_columns} fields, not {row.expected_columns}: {row.text[:80]!r}"
            rejected.append(Rejected("", f"{path}:{row.number}", reason))
        return "skip"

    keep = list(keep or names)
    data = _read(path, delimiter)
    skip_rows = int(header is not None and data.removeprefix(codecs.BOM_UTF8).startswith(header.encode()))
    try:
        table = csv.read_csv(
            pa.BufferReader(data),
            # One thread: only so are line numbers known.
            read_options=csv.ReadOptions(use_threads=False, column_names=list(names), skip_rows=skip_rows),
            parse_options=csv.ParseOptions(
                delimiter=delimiter, quote_char=False, ignore_empty_lines=False, invalid_row_handler=reject
            ),
            convert_options=csv.ConvertOptions(
                column_types={name: pa.string() for name in names}, include_columns=keep
            ),
        )
    except pa.ArrowInvalid as error:
        if "Empty CSV" not in str(error):
            raise FeridError(f"{path} cannot be read as a list: {error}; restore it from the archive") from error
        table = pa.table({name: pa.array([], pa.string()) for name in keep})
    lines = _line_numbers(len(table), bad_lines, first=1 + skip_rows)
    return _as_text(table, lines, path, rejected)


def read_splits(paths: Mapping[str, str], names: Sequence[str], delimiter: str, **options) -> Listed:
    """The lists of several splits as one, with the split that each row belongs to; see [`read_list`].

    Args:
        paths: split -> file.
        options: `header` and `keep` of `read_list`.
    """
    tables, rejected = [], []
    for split, path in paths.items():
        rows, bad = read_list(path, names, delimiter, **options)
        tables.append(rows.append_column("split", pa.repeat(split, len(rows))))
        rejected += bad
    return Listed(pa.concat_tables(tables), rejected)


def _read(path: str, delimiter: str) -> bytes:
    """The file, with U+FFFD for bytes that are not UTF-8: the parser cannot report a bad line that holds any.

    Blanks at the ends of lines are no further fields of a list that is separated by them.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read()
    except OSError as error:
        raise FeridError(f"{path} cannot be opened: {error.strerror}; restore it from the archive") from error
    if not data:
        raise FeridError(f"the list {path} is empty: restore it from the archive")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FeridError(f"the list {path} is UTF-16: save it as UTF-8")
    if delimiter == " ":
        data = re.sub(rb"[ \t]+(?=[\r\n]|$)", b"", data)
    return data if data.isascii() else data.decode(errors="replace").encode()


def _line_numbers(rows: int, bad_lines: list[int], first: int) -> pa.Array:
    """The lines of the file, from 1, that the rows come from: all but the bad ones."""
    lines = np.arange(first, first + rows + len(bad_lines), dtype=np.int32)
    return pa.array(np.setdiff1d(lines, bad_lines, assume_unique=True) if bad_lines else lines)


def _as_text(table: pa.Table, lines: pa.Array, path: str, rejected: list[Rejected]) -> Listed:
    """Trims the fields; a row that was not UTF-8 is rejected, a blank one is none."""
    fits = pc.invert(reduce(pc.or_, (pc.match_substring(column, "\ufffd") for column in table.columns)))
    if not pc.all(fits).as_py():
        numbers = lines.filter(pc.invert(fits)).to_pylist()
        rejected += [Rejected("", f"{path}:{number}", "the line is not UTF-8") for number in numbers]
        table, lines = table.filter(fits), lines.filter(fits)
    columns = {name: pc.utf8_trim_whitespace(table[name]) for name in table.column_names}
    listed = pa.table(columns | {"list": pa.repeat(path, len(lines)), "line": lines})
    blank = pc.equal(pc.binary_length(pc.binary_join_element_wise(*columns.values(), "")), 0)
    return Listed(listed.filter(pc.invert(blank)) if pc.any(blank).as_py() else listed, rejected)
