"""Do the features that an algorithm picks matter to the model? 'Which Sparse Code?', appendix G."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float, Int

from sae_lens_isae.progress import progress_bar
from sae_lens_isae.recoding.prompted_model import PromptedModel
from sae_lens_isae.solvers import SparseCodes


@torch.no_grad()
def ablate(
    model: PromptedModel,
    hook_name: str,
    prompts: Int[torch.Tensor, " samples"],
    x: Float[torch.Tensor, "samples d_in"],
    codes: SparseCodes,
    atoms: Float[torch.Tensor, "d_sae d_in"],
    n_ablated: Sequence[int],
    progress: str = "Ablation",
    as_long_as: SparseCodes | None = None,
) -> pd.DataFrame:
    """Subtract the largest features' contribution from x and let the model answer.

    Args:
        prompts: That the model answers correctly; `x` are its activations there.
        codes: Of x.
        n_ablated: How many features, one run of every prompt each.
        as_long_as: Codes whose largest features say how long what is subtracted is; by default
            that of `codes`.

    Returns:
        A row per number of `features`: `breaking_rate`, the share of the prompts whose answer
        changes, and `probability_drop`, of the right answer on average.
    """
    # all in one go: prompts of one length fill batches together
    removed = [codes.largest(k).decode(atoms) for k in n_ablated]
    if as_long_as is not None:
        wanted = [as_long_as.largest(k).decode(atoms).norm(dim=-1) for k in n_ablated]
        removed = [
            torch.nn.functional.normalize(part, dim=-1) * norm[:, None]
            for part, norm in zip(removed, wanted, strict=True)
        ]
    without = torch.cat([x - part for part in removed])
    runs = prompts.repeat(len(n_ablated))
    with progress_bar(total=len(runs), desc=progress, unit="run", leave=False) as bar:
        answers = model.replaced(hook_name, runs, without, bar)
    broken = (answers.token != model.answers[runs]).double().view(len(n_ablated), -1)
    drop = (model.unchanged().probability[runs] - answers.probability).view(len(n_ablated), -1)
    return pd.DataFrame(
        {
            "features": list(n_ablated),
            "n_prompts": len(x),
            "breaking_rate": broken.mean(1).tolist(),
            "probability_drop": drop.mean(1).tolist(),
        }
    )
