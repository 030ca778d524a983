"""Terminal tables keep their numbers on narrow terminals."""

from __future__ import annotations

from rich.console import Console

from sae_lens_isae.report.tables import rich_table


def test_long_names_give_way_and_numbers_do_not(capsys):
    rows = [["a/very/long/folder/name/" * 10, "0.1234", "0.5678"]]
    Console(width=60).print(rich_table("t", ["pair", "DCS", "IoU"], rows))
    printed = capsys.readouterr().out
    assert "0.1234" in printed
    assert "0.5678" in printed
    assert max(map(len, printed.splitlines())) <= 60
