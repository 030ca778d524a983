"""SAEBench's evals on any SAE of SAELens, right for signed codes, with and without a hub.

One file for each eval: `core`, `sparse_probing`, `scr_and_tpp`, `sae_probes`.
"""
