"""Tables that fit the terminal: in a narrow one, the least important columns are left out. No cell is ever cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from coordinator.report.printing import as_text

KEPT = 0
"""`drop_rank` of a column that is never left out."""

_BAR_WIDTH, _BAR_LEAST = 40, 8
_WIDE_GAP, _GAP = 2, 1


@dataclass(frozen=True, slots=True)
class Bar:
    """A cell that is drawn as a bar. part: its length, as a share of the longest bar."""

    part: float


TableCell: TypeAlias = str | Text | Bar


@dataclass(frozen=True, slots=True)
class TableColumn:
    """drop_rank: columns with the highest rank are left out first; `KEPT`: never. fold: for a column of text, the least
    width to which its cells may be wrapped. called: its name in the list of columns that were left out; the heading if
    "". bars: its cells are `Bar`."""

    heading: str
    drop_rank: int = KEPT
    fold: int | None = None
    called: str = ""
    bars: bool = False


@dataclass(slots=True)
class _Row:
    cells: tuple[TableCell, ...]
    style: str
    ends_section: bool = False


class FittedTable:
    """A table with a title, and below it a caption and the names of columns that were left out, if any.

    elsewhere: a file that has the columns that were left out. rule: draw a line below the headings.
    """

    def __init__(
        self, title: str, columns: Sequence[TableColumn], *, elsewhere: str = "", caption: str = "", rule: bool = True
    ) -> None:
        self.caption = caption
        self.columns = tuple(columns)
        self._title, self._elsewhere, self._rule = title, elsewhere, rule
        self._rows: list[_Row] = []

    def add_row(self, *cells: TableCell, style: str = "") -> None:
        """Add a row with one cell for each column."""
        assert len(cells) == len(self.columns)
        self._rows.append(_Row(tuple(as_text(cell) if isinstance(cell, str) else cell for cell in cells), style))

    def end_section(self) -> None:
        """Put an empty line after the last row."""
        if self._rows:
            self._rows[-1].ends_section = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table without the columns for which there is no room."""
        if self._title:
            yield as_text(self._title, style="bold")
        widths, gap = self._fit(options.max_width)
        table = self._drawn(widths, gap, "#" if options.ascii_only else "█")
        # If the kept columns do not fit, the table is wider than the terminal: narrower columns would be cut.
        needed = _needed(widths, list(widths), gap)
        yield from console.render(table, options.update(max_width=max(needed, options.max_width)))
        if self.caption:
            yield as_text(*self.caption.split("\n"), style="italic")
        if left_out := self._left_out(widths):
            where = f"see {self._elsewhere} or a wider terminal" if self._elsewhere else "see a wider terminal"
            names = ", ".join(left_out)
            yield as_text(f"left out at {options.max_width} columns: {names}; {where}", style="dim italic")

    def _fit(self, room: int) -> tuple[dict[int, int], int]:
        """Return (width of each column that stays, gap between two columns) for a room of this many characters."""
        most = {number: self._longest(number) for number in range(len(self.columns))}
        least = {number: self._least(number, longest) for number, longest in most.items()}
        staying = sorted(most, key=lambda number: (self.columns[number].drop_rank, number))
        for gap in (_WIDE_GAP, _GAP):
            if _needed(most, staying, gap) <= room:
                return {number: most[number] for number in sorted(staying)}, gap
        while _needed(least, staying, _GAP) > room and self.columns[staying[-1]].drop_rank != KEPT:
            staying.pop()
        gap = _WIDE_GAP if _needed(least, staying, _WIDE_GAP) <= room else _GAP
        spare = room - _needed(least, staying, gap)
        widths = {}
        for number in sorted(staying):
            more = min(max(spare, 0), most[number] - least[number])
            widths[number], spare = least[number] + more, spare - more
        return widths, gap

    def _longest(self, number: int) -> int:
        column = self.columns[number]
        if column.bars:
            return _BAR_WIDTH
        cells = (row.cells[number] for row in self._rows)
        lines = [line for cell in (column.heading, *cells) for line in _plain(cell).splitlines()]
        return max(map(cell_len, lines), default=0)

    def _least(self, number: int, longest: int) -> int:
        column = self.columns[number]
        if column.bars:
            return _BAR_LEAST
        return longest if column.fold is None else min(longest, max(column.fold, cell_len(column.heading)))

    def _left_out(self, widths: dict[int, int]) -> list[str]:
        named = [column.called or column.heading for number, column in enumerate(self.columns) if number not in widths]
        return [name for name in named if name]

    def _drawn(self, widths: dict[int, int], gap: int, block: str) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD if self._rule else None,
            show_edge=False,
            pad_edge=False,
            # With a rule, rich adds one blank between columns itself.
            padding=(0, gap - 1 if self._rule else gap, 0, 0),
            collapse_padding=False,
            header_style="bold",
        )
        for number, width in widths.items():
            column = self.columns[number]
            is_text = column.fold is not None or column.bars
            table.add_column(
                column.heading,
                justify="left" if is_text else "right",
                width=width,
                overflow="fold",
                no_wrap=not is_text,
            )
        for row in self._rows:
            cells = [_drawn(row.cells[number], width, block) for number, width in widths.items()]
            table.add_row(*cells, style=row.style, end_section=row.ends_section)
        return table


class WithoutTrailingBlanks:
    """Draws parts without blanks at the ends of lines."""

    def __init__(self, *parts: object) -> None:
        self._parts = parts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw line by line."""
        for part in self._parts:
            segments = console.render(part, options)  # type: ignore[arg-type]
            for line in Segment.split_lines(segments):
                yield from _trimmed(line)
                yield Segment.line()


def print_parts(console: Console, *parts: object) -> None:
    """Print parts. Lines do not end in blanks, and a line longer than the terminal is not cut."""
    console.print(WithoutTrailingBlanks(*parts), crop=False, end="")


def _needed(widths: dict[int, int], columns: Sequence[int], gap: int) -> int:
    return sum(widths[number] for number in columns) + gap * (len(columns) - 1)


def _plain(cell: TableCell) -> str:
    return "" if isinstance(cell, Bar) else cell.plain if isinstance(cell, Text) else cell


def _drawn(cell: TableCell, width: int, block: str) -> Text:
    if isinstance(cell, Bar):
        return as_text(block * -int(-cell.part * width // 1))
    return cell if isinstance(cell, Text) else as_text(cell)


def _trimmed(line: list[Segment]) -> Iterator[Segment]:
    kept = [segment for segment in line if not segment.control]
    while kept and not kept[-1].text.rstrip(" "):
        kept.pop()
    if kept:
        last = kept[-1]
        kept[-1] = Segment(last.text.rstrip(" "), last.style)
    yield from kept
