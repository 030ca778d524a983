"""Numbers in the manual: from the result files of `benchmarks/`, and from the glossary.

A page writes `{{ rows("demo", {"variant": "", "mse": ".3f"}) }}` and no figure by hand.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "benchmarks"))


def load(name: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(headers: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)


def _escaped(cell: object) -> str:
    return str(cell).replace("|", "\\|")


def _shown(value: Any, form: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(_shown(each, form) for each in value)
    if isinstance(value, float):
        return format(value, form or ".4g")
    return str(value)


def _at(row: dict[str, Any], path: str) -> Any:
    found: Any = row
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def made(name: str) -> str:
    """Device, versions, command and date of a result."""
    p = load(name)["provenance"]
    versions = ", ".join(f"{k} {v}" for k, v in p["versions"].items())
    return (
        f"*{p['device']}; Python {p['python']}, {versions}; {p['date']}.* "
        f"Made by `{p['command']}`, kept in `benchmarks/results/{name}.json`."
    )


def rows_made(name: str) -> str:
    """Where the rows of a result were made, which have a provenance of their own."""
    places = Counter(
        (
            row["made"]["device"],
            f"Python {row['made']['python']}",
            *(f"{k} {v}" for k, v in row["made"]["versions"].items()),
            row["made"]["date"],
        )
        for row in load(name)["rows"]
    )
    said = " ".join(f"{n} rows: {', '.join(place)}." for place, n in places.most_common())
    command = load(name)["provenance"]["command"].split(" --")[0]
    return (
        f"*{said}* Made by `{command}`, kept with the whole command of each row in "
        f"`benchmarks/results/{name}.json`."
    )


def rows(
    name: str,
    columns: dict[str, str],
    titles: list[str] | None = None,
    where: dict[str, Any] | None = None,
    key: str = "rows",
) -> str:
    """Rows of a result, columns by their path in a row, each with its number format."""
    found = [
        row
        for row in load(name)[key]
        if all(_at(row, path) == value for path, value in (where or {}).items())
    ]
    if not found:
        raise ValueError(f"{name}: no rows where {where}")
    cells = [[_shown(_at(row, c), form) for c, form in columns.items()] for row in found]
    return table(titles or list(columns), cells)


def tables(name: str) -> str:
    """All tables of a result that holds them ready-made."""
    parts = [
        f"**{found['title']}**\n\n{table(found['headers'], found['rows'])}"
        for found in load(name)["tables"]
    ]
    return "\n\n".join(parts)


def value(name: str, path: str, form: str = "") -> str:
    """One number of a result."""
    found = _at(load(name), path)
    if found is None:
        raise ValueError(f"{name} has no {path}")
    return _shown(found, form)


def trial(name: str, column: str, form: str = "") -> str:
    """One number of the log of the recipe, by the name of its trial."""
    (row,) = (row for row in load("recipe")["rows"] if row["trial"] == name)
    return _shown(row[column], form)


def glossary(name: str) -> str:
    """The numbers of a command, from the words of its reports."""
    from sae_lens_isae.report import glossary as words

    lines = getattr(words, name)
    return table(["number", "in one line"], [[k, v] for k, v in lines.items()])


def table1() -> str:
    """Table 1 beside the paper's numbers, mean and standard deviation, and when it was made."""
    from synthetic_study import table_lines

    found = load("table1")["rows"]
    dates = [
        f"- {row['data']}, {row['variant']}, {row.get('recipe', 'ours')}: "
        f"{row['made']['date']}, {row['made']['device']}"
        for row in found
    ]
    return "\n".join([*table_lines(found), "", *dates])


def _lines_as_table(lines: list[list[str]]) -> str:
    return table(lines[0], lines[1:])


def table2() -> str:
    """Table 2 beside the paper's numbers, and what DCS is by chance."""
    import table2_report

    return _lines_as_table(table2_report.table2(load("table2")["rows"]))


def table2_more() -> str:
    """What Table 2 has no column for."""
    import table2_report

    return _lines_as_table(table2_report.more(load("table2")["rows"]))


def table2_cells(study: str, name: str = "table2") -> str:
    """The cells of one study around Table 2, or of one on other activations."""
    import table2_report

    rates = table2_report.best_rates(load("table2")["rows"])
    rows = table2_report.of_study(load(name)["rows"], study, rates)
    return _lines_as_table(table2_report.cells_table(rows))


def step_table(dead: float = 0.0) -> str:
    """A training step over stock `topk`, from step to step and in GPU time, its distance to the
    floor and its memory."""
    rows = [row for row in load("train_step")["rows"] if row["dead"] == dead]
    found = {(row["latents"], row["name"], row["precision"]): row for row in rows}
    lines = []
    for latents, name in dict.fromkeys((latents, name) for latents, name, _ in found):
        cells = [f"{latents:,}", name]
        for precision in ("tf32", "bf16"):
            row = found[latents, name, precision]
            low, high = row["ratio_range"]
            times = [f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})", f"{row['gpu_ratio']:.2f}"]
            if name == "stock topk":
                times = [f"{row['ms']:.1f} ms", f"{row['gpu_ms']:.1f} ms"]
            floor = f"{row['floor_ms'] / row['gpu_ms']:.0%}"
            cells += [*times, floor, f"{row['peak_gb']:.1f}"]
        lines.append(cells)
    of_precision = ["step", "GPU", "floor", "GB"]
    headers = [f"{column}, {kind}" for kind in ("TF32", "bfloat16") for column in of_precision]
    return table(["latents", "", *headers], lines)


def step_aims_table() -> str:
    """Which aims for a training step were met."""
    import step_report

    return _lines_as_table(step_report.aims_table(load("train_step")))


_SETTINGS = {"throughput_smollm2": "smollm2", "throughput_pythia": "pythia"}
_RUNS = {
    "sae_lens": "SAELens' runner, `topk`",
    "topk": "`isae train`, `topk`",
    "isae_me": "`isae train`, iSAE-ME",
    "isae_me:4": "four seeds of it",
}


def throughput_table() -> str:
    """Tokens a second from end to end."""
    lines = []
    for kind, title in _RUNS.items():
        cells = [title]
        for name, setting in _SETTINGS.items():
            found = load(name)[setting]["tokens_per_second"][kind]
            low, high = (format(round(edge(found), -2), ",.0f") for edge in (min, max))
            cells.append(f"{round(statistics.median(found), -2):,.0f} ({low} to {high})")
        lines.append(cells)
    return table(["tokens/s", "SmolLM2, 576 dimensions", "Pythia's size, 768"], lines)


def parts_table() -> str:
    """Millions of tokens a second of each part."""
    parts = {name: load(name)[setting]["parts"] for name, setting in _SETTINGS.items()}
    lines = [
        [part, *(f"{of[part] / 1e6:.2f}" for of in parts.values())]
        for part in next(iter(parts.values()))
    ]
    return table(["part", "SmolLM2", "Pythia's size"], lines)


def two_gpus_table() -> str:
    """Tokens a second on one GPU and on two."""
    lines = []
    for row in load("two_gpus")["rows"]:
        low, *_, high = row["ratios"]
        rates = (f"{round(statistics.median(row[of]), -3):,.0f}" for of in ("one", "two"))
        ratio = f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"
        lines.append([row["case"], row["gpu"], *rates, ratio])
    return table(["", "GPUs", "tokens/s on one", "on two", "ratio (range)"], lines)


def minutes(name: str, path: str, n_tokens: float) -> str:
    """How long so many tokens take at a rate."""
    (rate,) = _at(load(name), path)
    return f"{n_tokens / rate / 60:.0f}"


def solver_table(name: str) -> str:
    """Solvers: median and range of the turns."""
    found = load(name)
    measured, total = found["samples_measured"], found["problem"]["samples"]
    lines = []
    for solver in found["rounds"][0]:
        turns = [turn[solver] for turn in found["rounds"] if solver in turn]
        seconds = [turn["seconds"] for turn in turns]
        peak = max(turn["peak_gb"] for turn in turns)
        faster = found["times_faster_than"].get(solver)
        lines.append(
            [
                solver,
                str(measured[solver]) if measured[solver] != total else str(total),
                f"{statistics.median(seconds):.3g} ({min(seconds):.3g} to {max(seconds):.3g})",
                f"{peak:.1f}",
                "-"
                if faster is None
                else f"{faster['median']:.3g} ({faster['min']:.3g} to {faster['max']:.3g})",
            ]
        )
    headers = ["solver", "samples", "seconds", "peak GB", "`omp` is faster by, per sample"]
    return table(headers, lines)


def audit_verdicts() -> str:
    """What the audit says of the demo's variants, first seed."""
    lines = []
    for found in load("measuring")["variants"]:
        delta = found["delta_on_pairs"][0]["delta"]
        verdicts = [each["verdict"] for each in found["assumptions"][0]]
        lines.append([found["variant"], f"{delta['median']:.2f}", f"{delta['max']:.2f}", *verdicts])
    names = [f"A{i}" for i in range(1, 7)]
    return table(["", "δ, median", "δ, largest", *names], lines)


def recovery_table() -> str:
    """Error of the codes by weight of the self-consistency term and by k."""
    found = load("latent_recovery")
    lines = []
    for concepts, key in (("uncorrelated", "rho 0"), ("cosine 0.1", "rho 0.1")):
        settings = found[key]["settings"]
        for i, k in enumerate(found["setting"]["k"]):
            errors = [s["latent_error"]["mean"][i] for s in settings.values()]
            rank = found[key]["spearman_at_lambda_0"]["mean"][i]
            lines.append([concepts, str(k), *(f"{error:.3f}" for error in errors), f"{rank:.2f}"])
    names = [name.replace("lambda", "λ =").replace("WSAE", "WSAE, alpha =") for name in settings]
    return table(["concepts", "k", *names, "Spearman at λ = 0"], lines)


def health_table(name: str) -> str:
    """Dictionary health with and without latent self-consistency, beside the paper's change."""
    lines = []
    for kind, rows_of_kind in load(name)["tables"].items():
        for number, row in rows_of_kind.items():
            without, with_term = (
                f"{mean:.4f} ± {spread:.4f}" for mean, spread in (row["without"], row["with"])
            )
            change = f"{row['change_percent']:+.1f}%"
            paper = row.get("paper_change_percent")
            theirs = "-" if paper is None else f"{paper:+.1f}%"
            lines.append([kind, number.replace("_", " "), without, with_term, change, theirs])
    return table(["SAE", "", "without", "with", "change", "the paper's change"], lines)


def define_env(env: Any) -> None:
    """What pages may call."""
    for macro in (
        made,
        rows_made,
        rows,
        tables,
        value,
        trial,
        glossary,
        table1,
        table2,
        table2_more,
        table2_cells,
        throughput_table,
        parts_table,
        two_gpus_table,
        minutes,
        step_table,
        step_aims_table,
        solver_table,
        audit_verdicts,
        recovery_table,
        health_table,
    ):
        env.macro(macro)
