"""A stable dictionary is not enough: one dictionary, two encoders, equal error, other features.

Theorem 3.2 of 'Toward Identifiable Sparse Autoencoders' builds a dictionary on which any encoder
has a counterpart that rebuilds every input just as well with other latents. Here it is with real
SAEs, with what the measurements say, and with a picture (same_dictionary_two_codes.html).
"""

from pathlib import Path

import plotly.graph_objects as go
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from sae_lens_isae import audit, pairwise_identifiability

D_IN, D_SAE, K, TILT = 8, 12, 4, 0.6

# e_1 ... e_k, two atoms in the plane of the last two of them, and more atoms of their span
atoms = torch.zeros(D_SAE, D_IN)
atoms[:K, :K] = torch.eye(K)
atoms[K, K - 2 : K] = torch.tensor([1.0, TILT])
atoms[K + 1, K - 2 : K] = torch.tensor([TILT, 1.0])
atoms[K + 2 :, :K] = torch.randn(D_SAE - K - 2, K, generator=torch.Generator().manual_seed(0))
atoms = torch.nn.functional.normalize(atoms, dim=-1)


def sae_on(support: list[int]) -> StandardSAE:
    """An SAE whose encoder solves for the coefficients of the atoms in `support` exactly."""
    sae = StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE))
    sae.activation_fn = torch.nn.Identity()
    with torch.no_grad():
        sae.W_dec.copy_(atoms)
        sae.W_enc.zero_()
        sae.W_enc[:, support] = torch.linalg.pinv(atoms[support])
    return sae


first = sae_on(list(range(K)))
second = sae_on([*range(K - 2), K, K + 1])
x = torch.zeros(2000, D_IN)
x[:, :K] = torch.randn(2000, K, generator=torch.Generator().manual_seed(1))

for name, sae in (("first", first), ("second", second)):
    error = ((sae(x) - x).norm(dim=-1) / x.norm(dim=-1)).max()
    print(f"{name} encoder: largest relative error {error:.1e}")
found = pairwise_identifiability({"first": first, "second": second}, x, n_oracle_samples=0).pairs[0]
print(f"dictionaries: DCS {found.dcs:.3f} (identical)")
print(f"codes: IoU {found.sae.iou.value:.3f}, l2 {found.sae.l2.value:.3f} (not identical)")
delta = audit({"first": first}, x)["first"].pairs.delta.max
print(f"delta on the observed supports of the first: {delta:.2f}; on the union with the second's")
union = atoms[[*range(K), K, K + 1]]
worst = (torch.linalg.eigvalsh(union @ union.T) - 1).abs().max()
print(f"{worst:.2f}: from 1 on, nothing singles out one support")

point = x[0, K - 2 : K]
figure = go.Figure()
for title, sae, colour in (("first code", first, "#1f77b4"), ("second code", second, "#d62728")):
    corner = torch.zeros(2)
    path = [corner]
    code = sae.encode(x[:1])[0].detach()
    for latent in range(K - 2, K + 2):
        if code[latent] != 0:
            corner = corner + code[latent] * atoms[latent, K - 2 : K]
            path.append(corner)
    xs, ys = torch.stack(path).T.tolist()
    figure.add_scatter(x=xs, y=ys, mode="lines+markers", name=title, line={"color": colour})
figure.add_scatter(
    x=[float(point[0])], y=[float(point[1])], mode="markers", name="x", marker={"size": 14}
)
figure.update_layout(
    title="The same activation as two sums of atoms of one dictionary (the plane of e_3 and e_4)",
    yaxis={"scaleanchor": "x"},
    template="plotly_white",
)
out = Path("same_dictionary_two_codes.html")
figure.write_html(out)
print(f"picture: {out}")
