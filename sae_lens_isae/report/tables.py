"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from sae_lens_isae.identifiability.table import TableRow

TABLE1_HEADERS = (
    "Model",
    "MSE",
    "R_S",
    "SAE IoU",
    "SAE l2",
    "Oracle IoU",
    "Oracle l2",
    "DCS",
)


def table1_cells(row: TableRow) -> list[str]:
    """The cells of a Table 1 row, three decimals as in the paper."""
    numbers = (
        row.mse,
        row.r_arip,
        row.sae_iou,
        row.sae_l2,
        row.oracle_iou,
        row.oracle_l2,
        row.dcs,
    )
    return [row.variant, *("-" if number is None else f"{number:.3f}" for number in numbers)]


def rich_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    table = Table(title=title)
    for i, header in enumerate(headers):
        if i == 0:
            table.add_column(header, overflow="fold")
        else:
            # long names give way, numbers do not
            width = max(len(header), *(len(row[i]) for row in rows))
            table.add_column(header, justify="right", no_wrap=True, min_width=width)
    for row in rows:
        table.add_row(*row)
    return table
