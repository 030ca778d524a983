"""SAEBench's own plots of its result files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from sae_lens_isae.saebench.installed import module

SHOWN = {
    "sparse_probing": 5,
    "sparse_probing_sae_probes": 5,
    "scr": 20,
    "tpp": 20,
}
"""Numbers of latents, by SAEBench's names of the evals."""

_MARKERS = ("v", "D", "<", ">", "p", "h", "8", "H")
_COLOURS = ("teal", "magenta", "olive", "navy", "tomato", "black", "gold", "gray")


def plot_with_saebench(folder: Path, names: Sequence[str], out: Path) -> list[Path]:
    """Draw sparsity against each eval for which there are results of all SAEs, and of core.

    SAEBench has no marker for architectures that it does not train, such as AbsTopK, and its plot
    by dictionary size fails on them, so it is given some.

    Args:
        folder: With SAEBench's folders of results.
        names: Of the result files, without their common ending.
        out: Folder for the pictures.

    Returns:
        The pictures.

    Raises:
        MissingInputError: What SAEBench plots with is not installed.
    """
    plt = module("matplotlib.pyplot")
    graphing = module("sae_bench.sae_bench_utils.graphing_utils")
    files = [f"{name}_eval_results.json" for name in names]
    backend = plt.get_backend()
    drawn: list[Path] = []
    # neutral names: SAEBench tells evals by any part of a path
    with tempfile.TemporaryDirectory(prefix="plots_") as scratch:
        plt.switch_backend("Agg")
        try:
            for name, k in SHOWN.items():
                if not all((folder / kind / f).exists() for kind in ("core", name) for f in files):
                    continue
                for kind in ("core", name):
                    (Path(scratch) / kind).mkdir(exist_ok=True)
                    for file in files:
                        shutil.copy(folder / kind / file, Path(scratch) / kind / file)
                paths = [str(Path(scratch) / name / file) for file in files]
                metric, _ = graphing.get_custom_metric_key_and_name(name, k)
                results = graphing.get_eval_results(paths)
                # SCR has no value where its two directions tie, and small SAEs have fewer latents
                if any(found.get(metric) is None for found in results.values()):
                    continue
                markers, colours = _legend(graphing, {r["sae_class"] for r in results.values()})
                out.mkdir(parents=True, exist_ok=True)
                graphing.plot_results(
                    paths,
                    [str(Path(scratch) / "core" / file) for file in files],
                    name,
                    str(out / name),
                    k=k,
                    trainer_markers=markers,
                    trainer_colors=colours,
                )
                plt.close("all")
                drawn += sorted(out.glob(f"{name}_2var*.png"))
        finally:
            plt.switch_backend(backend)
    return drawn


def _legend(graphing: ModuleType, classes: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    markers, colours = dict(graphing.TRAINER_MARKERS), dict(graphing.TRAINER_COLORS)
    new = sorted(classes - markers.keys())
    markers |= dict(zip(new, _MARKERS, strict=False))
    colours |= dict(zip(new, _COLOURS, strict=False))
    return markers, colours
