"""How long `isae recode` takes at GemmaScope's size: d_in 2304, 16,384 latents, about 64 active.

    python benchmarks/recode.py            # on a GPU with the ablation, in a model of its size

Weights are random, and so are the activations on a CPU; on a GPU they are those of the model, whose
own answers count as correct. Every part is timed in one run of the study.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import defaultdict

import torch
from provenance import write_result
from sae_lens import SAE
from sae_lens.load_model import HookedProxyLM
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from transformers import Gemma2Config, Gemma2ForCausalLM

from sae_lens_isae.recoding import PromptedModel, RecodeSettings, recode
from sae_lens_isae.recoding.algorithms import GD, IHT, IHT_ENCODER, OMP

D_IN, D_SAE, K = 2304, 16_384, 64
HOOK = "model.layers.12"
PARTS = {
    "OMP, Gram matrix included": lambda name: name == OMP.name,
    "OMP without the largest": lambda name: name.startswith("OMP-exclude"),
    "IHT": lambda name: name in (IHT.name, IHT_ENCODER.name),
    "agreement": lambda name: name == "agreement",
    "GD-sparse": lambda name: name == GD.name,
    "noise": lambda name: name.startswith("noise") and GD.name not in name,
    "noise, GD-sparse": lambda name: name.startswith("noise") and GD.name in name,
    "decoders": lambda name: name.startswith("decoders"),
    "ablation": lambda name: name.startswith("ablation"),
}
TABLES_1_TO_3 = ("OMP, Gram matrix included", "OMP without the largest", "IHT", "agreement")


def random_prompts(n: int, device: str) -> PromptedModel:
    """A random Gemma-2-2B that answers every prompt as it does."""
    config = Gemma2Config()
    with torch.device(device):
        model = HookedProxyLM(Gemma2ForCausalLM(config).eval(), None, hook_names=[HOOK])  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(0)
    tokens = [
        torch.randint(config.vocab_size, (8 + i % 12,), generator=generator) for i in range(n)
    ]
    asked = PromptedModel(model, tokens, torch.zeros(n, dtype=torch.long))
    return PromptedModel(model, tokens, asked.unchanged().token)


def random_activations(n: int, atoms: torch.Tensor) -> torch.Tensor:
    """K atoms with coefficients from 1 to 11, and noise."""
    codes = torch.zeros(n, D_SAE)
    codes.scatter_(1, torch.rand(n, D_SAE).topk(K).indices, 1 + 10 * torch.rand(n, K))
    return codes @ atoms.cpu() + 0.5 * torch.randn(n, D_IN)


def random_sae(device: str) -> SAE[JumpReLUSAEConfig]:
    """An SAE with unit-norm atoms and a tied encoder."""
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE, device=device))
    atoms = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN), dim=-1).to(device)
    sae.W_dec.data, sae.W_enc.data = atoms, atoms.T.clone()
    sae.b_enc.data.zero_()
    sae.cfg.metadata.hook_name = HOOK
    return sae


def main() -> None:
    """One study, timed by part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    sae = random_sae(args.device)
    with_model = args.device != "cpu"
    prompted = random_prompts(args.samples, args.device) if with_model else None
    start = time.perf_counter()
    if prompted is None:
        x = random_activations(args.samples, sae.W_dec)
    else:
        x = prompted.activations(HOOK)
    prompts_seconds = time.perf_counter() - start
    # as many active latents as GemmaScope has
    sae.threshold.data.fill_((x.to(args.device) @ sae.W_enc).topk(K).values[:, -1].mean())
    start = time.perf_counter()
    report = recode({"random": sae}, x if prompted is None else prompted, RecodeSettings())
    seconds = time.perf_counter() - start
    found = report.saes[0]
    parts: dict[str, float] = defaultdict(float)
    for name, value in found.seconds.items():
        parts[next(part for part, holds in PARTS.items() if holds(name))] += value
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    write_result(
        f"recode_{args.device}",
        {
            "samples": found.n_samples,
            "mean_k": found.mean_k,
            "gd_samples": int(found.agreement.set_index("method").loc[GD.name, "n_samples"]),
            "gd_starts": report.settings.gd_starts,
            "notes": found.notes,
            "seconds": {part: round(value, 2) for part, value in parts.items()},
            "seconds_prompts": round(prompts_seconds, 2) if with_model else None,
            "seconds_tables_1_to_3_without_gd": round(sum(parts[p] for p in TABLES_1_TO_3), 1),
            "seconds_whole_study": round(seconds + prompts_seconds * with_model, 1),
            "peak_memory_gb": round(rss, 2),
            "peak_gpu_memory_gb": (
                round(torch.cuda.max_memory_allocated() / 2**30, 2) if with_model else None
            ),
        },
    )


if __name__ == "__main__":
    main()
