"""Rows of a CSV file that an experiment has kept, or anybody: the lines are counted, so that an error can name one."""

import csv
import io
import math
from pathlib import Path

from traces.errors import UserError


def rows_of(path: str) -> list[tuple[int, dict[str, str]]]:
    """(line on which it ends, row by column) of each; a first line that begins with # is a comment. Raises UserError,
    one line that names the file."""
    try:
        text = io.StringIO(Path(path).read_text(encoding="utf-8-sig"))
        above = 1 if text.readline().startswith("#") else text.seek(0)
        reader = csv.DictReader(text, strict=True)
        return [(above + reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV: {getattr(error, 'strerror', None) or error}") from None


def text_in(where: str, text: str) -> str:
    """A text that must be there. Raises UserError."""
    if not text.strip():
        raise UserError(f"{where} = {text!r}: must not be empty")
    return text


def number_in(where: str, text: str, least: float, most: float) -> float:
    """A figure from `least` to `most`. Raises UserError."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not least <= found <= most:
        raise UserError(f"{where} = {text!r}: must be a number in [{least:g}, {most:g}]")
    return found
