"""The recoding study on a JumpReLU, a TopK and an iSAE-ME trained on SmolLM2, after block 9.

    python benchmarks/recode_smollm2.py        # half an hour on two cores, most of it training

`configs/smollm2_<variant>.yaml` with twice the latents and tokens, then `isae recode` with the
facts that come with the package. What lies in the work folder is not made again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from provenance import write_result

from sae_lens_isae.inputs.saes import named_saes
from sae_lens_isae.recoding import RecodeSettings, prompted_model, recode
from sae_lens_isae.recoding.tables import more_tables
from sae_lens_isae.training.config import load_runner_config
from sae_lens_isae.training.runs import train

VARIANTS = ("jumprelu", "topk", "isae_me")
FLAGS = ["--d_sae", "2048", "--training_tokens", "400000", "--lr_decay_steps", "312"]
AVERAGED = ["--average_from", "1042", "--average_until", "1563"]
"""Of our own architectures."""
CONFIGS = Path(__file__).parent.parent / "configs"


def main() -> None:
    """Train what is missing, then study all three."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("output/recode_smollm2"))
    args = parser.parse_args()
    for variant in VARIANTS:
        folder = args.work / variant
        if not (folder / "cfg.json").exists():
            config = CONFIGS / f"smollm2_{variant}.yaml"
            flags = [*FLAGS, *(() if variant == "jumprelu" else AVERAGED)]
            train(load_runner_config(config, [*flags, "--output_path", str(folder)]))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    saes = named_saes([args.work / variant for variant in VARIANTS], device)
    out = args.work / "report"
    report = recode(
        saes,
        prompted_model(list(saes.values()), autocast=True),
        # these SAEs are small enough
        RecodeSettings(gd_samples=10_000),
        cache=out / "parts",
    )
    report.save(out)
    write_result(
        "recode_smollm2",
        {
            "tables": [
                table._asdict()
                for table in [*report.tables(), *more_tables(report.saes, report.settings)]
            ],
            "report": report.to_dict(),
        },
    )


if __name__ == "__main__":
    main()
