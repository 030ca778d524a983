"""An exported iSAE is a stock SAELens SAE: `python load_in_stock_sae_lens.py [folder]`.

Run `train.py` first. Nothing of sae_lens_isae is imported here.
"""

import sys

import torch
from sae_lens import SAE

sae = SAE.load_from_disk(sys.argv[1] if len(sys.argv) > 1 else "output/example")
x = torch.randn(4, sae.cfg.d_in)
codes = sae.encode(x)
print(f"{type(sae).__name__}: {(codes != 0).sum(-1).tolist()} active latents per sample")
print(f"trained as {sae.cfg.metadata.training_architecture!r}, output {tuple(sae(x).shape)}")
