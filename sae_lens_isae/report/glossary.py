"""Every number that the reports print, in one line."""

from __future__ import annotations

PAIRWISE = {
    "DCS": "mean |cosine| of the atoms of two SAEs after one-to-one matching; 1: same dictionary "
    "up to order and sign.",
    "MCC": "mean cosine with its own best matching (Song et al. 2025); below DCS where atoms agree "
    "up to sign only.",
    "IoU": "overlap of the active latents of matched codes, |S & S'| / |S | S'|, mean over "
    "samples; 1: the same latents fire. Matched as for DCS, or as for MCC where neither SAE's "
    "codes have signs.",
    "l2": "mean distance of matched codes over their mean norm; 0: same codes, about 1.4: "
    "unrelated ones.",
    "l2/√2": "the same from 0 to 1: the scale of the tables of Nelson et al., whose values are "
    "impossible on the other.",
    "Oracle": "IoU and l2 with orthogonal matching pursuit on the dictionaries instead of the "
    "SAEs' encoders; better than theirs: the encoder is what limits agreement.",
    "±": "half the 95% bootstrap interval over activations.",
    "MSE": "mean |x - x_hat|^2 / |x|^2.",
    "L0": "mean number of active latents.",
    "R_S": "mean R_aRIP on the 2k largest pre-activations: mean squared deviation from 1 of the "
    "eigenvalues of D_S^T D_S; 0: atoms that act together are orthogonal.",
    "dead": "latents that no sample activates.",
    "found": "share of latents whose atom has cosine 0.9 (--found) or more with its partner in "
    "every other SAE of the group, up to sign where codes have signs; zero atoms are left out.",
    "rarest fifth": "mean cosine with the partners, of the fifth of the latents that fire least "
    "often, among those that fire; and so on to the most frequent fifth.",
    "most frequent": "the same of the fifth that fires most often.",
    "by activity": "mean cosine with each latent weighted by its share of the sum of |codes|.",
    "by chance": "the same numbers where there is nothing to agree on: DCS, MCC and found of "
    "dictionaries of random directions, of random directions with the activations' covariance, and "
    "of activations themselves; IoU and l2 of codes of other samples, and of codes whose latents "
    "were given other partners.",
    "unmatched": "latents of the larger dictionary without partner; active ones count as "
    "disagreement.",
}
"""Of `isae pairwise`."""

AUDIT = {
    "epsilon": "largest |x - x_hat| / |x - b| (A3).",
    "delta": "how far the squared length of D z can be from that of z on a support: max "
    "|eigenvalue of D_S^T D_S - 1|; below 1/3 classical recovery theory applies, from 1 on nothing "
    "does.",
    "delta on pairs": "on unions of the supports of two random samples (Definition 3.3).",
    "delta on 2k": "on the 2k largest pre-activations of a sample, the paper's hard case.",
    "verdicts": "'refuted': one counterexample was seen; 'not refuted': none was, on so many of so "
    "many; 'not estimable': these activations cannot show it.",
    "zeta": "smallest singular value of k codes that share a support of k latents (A4), over all "
    "supports; unless each repeats that often it is known from above only.",
    "alpha": "sqrt(1 - (2 delta / (1 + delta))^2): sine between the spans of two supports, at "
    "least.",
    "eta": "2 sqrt(k) epsilon / (zeta sqrt(1 - delta)): sine between a support's span and its "
    "counterpart's in the other SAE, at most.",
    "atom bound": "2 (1 + 2 / alpha) eta, how far matched atoms can be apart; vacuous from "
    "sqrt(2) on.",
    "code bound": "how far matched codes can be apart; vacuous from the sum of their norms on.",
    "least-squares gap": "distance of a code from the best coefficients on its own support, over "
    "its norm (A6).",
    "mu": "coherence: the largest |cosine| of two atoms.",
    "(k - 1) mu": "bound on delta for any k atoms, and on the relative code error of an ideal SAE "
    "('Latent Recovery', Lemma 1); vacuous from 1 on.",
    "self-consistency": "how far a code moves by one more decode and encode, over its norm; in "
    "support: on its own latents alone.",
    "Lipschitz": "|W_enc W_dec|, the largest factor by which that pass stretches (Corollary 3).",
    "error bound": "in-support self-consistency over Lipschitz: if the dictionary were the true "
    "one, codes would be wrong by at least this share of their norm (Theorem 2).",
    "dead fraction": "share of latents active in less than one sample of 10,000.",
    "usage entropy": "entropy of the firing rates over that of equal rates; 1 is best.",
    "coherence RMS": "root mean square cosine of two different atoms.",
}
"""Of `isae audit`."""

RECODE = {
    "methods": "every algorithm has the SAE's own dictionary and exactly the encoder's number of "
    "latents on each sample. Where codes have signs, magnitudes are ranked.",
    "OMP": "orthogonal matching pursuit: the atom most correlated with the residual, then least "
    "squares, again and again.",
    "OMP-exclude-top1": "the same without the encoder's largest feature (top2, top3: features).",
    "IHT": "iterative hard thresholding from random supports: gradient steps on the error, each "
    "followed by keeping the k largest coefficients.",
    "IHT-from-encoder": "the same, started at the encoder's code.",
    "GD": "GD-sparse: Adam with an l1 penalty, then the k largest coefficients.",
    "recon": "squared error over the encoder's; below 1 the encoder is not the best.",
    "Jacc": "overlap of the supports with the encoder's, mean over samples; 1: the same features.",
    "R2": "how well a linear map takes 50 principal components of one code to those of the other, "
    "mean over components and both directions; 1: the same information.",
    "chance": "the R2 of unrelated codes with as many samples and components; above 0.5 R2 and CCA "
    "are left out. In brackets: the same measure with every sample's code against another "
    "sample's.",
    "R2 weighted": "components weighted by their variance.",
    "retained": "share of the codes' variance in these components.",
    "Cos": "cosine of the two codes of a sample.",
    "CCA": "mean canonical correlation of the components.",
    "Proc": "distance of the encoder's codes from the rotated other ones, over the norm of the "
    "other ones: large where these are small.",
    "disparity": "the same of centred codes of equal norm, squared: 0 to 1.",
    "shared corr": "correlation of the coefficients of features that both use.",
    "two starts": "overlap of the supports from two random starts.",
    "breaking rate": "share of correctly answered prompts whose answer changes when a method's "
    "largest features are subtracted at the last position; by chance: when the encoder's largest "
    "features of another prompt are, as long as this one's.",
    "prob drop": "by how much the probability of the right answer falls, on average.",
    "robust": "latents that OMP and both IHT pick in 90% of the samples in which the encoder does, "
    "of those that it uses in 5 or more; without those on a template. By chance: where the "
    "algorithms coded another sample, of whatever template.",
    "on a template": "latents 90% of whose samples are prompts of one template, half or more of "
    "whose prompts they fire on: they may say no more than which template it is.",
}
"""Of `isae recode`."""

BENCH = {
    "CE loss": "cross-entropy of the model with the SAE's reconstruction in place of the "
    "activations, in nats per token; lower is better.",
    "CE score": "share of the loss that the SAE recovers, between the activations at 0 and as they "
    "are; 1 is best.",
    "L0": "mean number of active latents.",
    "alive": "share of the SAE's latents that are active in one token or more, with either sign.",
    "Probing": "accuracy of a linear probe on all latents, mean over data sets and classes; "
    "Probing 5: on the five latents that differ most between the classes.",
    "SCR": "spurious correlation removal: by how much ablating latents brings a probe that was "
    "trained on a biased sample nearer to one that was not; 1: all the way.",
    "TPP": "targeted probe perturbation: how much more ablating a class's latents harms the probe "
    "of this class than the probes of the others.",
    "probes AUC": "sae-probes: area under the ROC curve of a probe on five latents of the last "
    "token.",
    "CE-bench": "contrastive + independence - 0.25 sparsity on pairs of contrasting stories.",
    "contrastive": "largest difference of a latent between the stories of a pair, 0 to 1.",
    "independence": "largest difference of a latent between a pair and the mean of all pairs, 0 "
    "to 1.",
    "sparsity": "share of the latents that are active in a token.",
    "interp": "autointerp: a judge explains latents from texts that they are active on, and picks "
    "from its explanation alone, among 14 texts, those on which the latent is active; share of "
    "right picks. One who picks none has 0.714.",
    "interp over control": "score less that of the same judge with another latent's explanation; "
    "0: the explanations say nothing.",
    "unreadable": "share of the latents for which the judge's picks were no list of numbers.",
    "±": "standard deviation over seeds.",
    "non-negative form": "a signed SAE with each atom twice, once with either sign, and "
    "relu([z, -z]) as its code: what it rebuilds is the same. For evals that count or credit "
    "positive codes only.",
}
"""Of `isae bench`."""
