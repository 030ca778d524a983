"""The `isae` command: one file for each command, beside `app`.

A package of its own, because importing `sae_lens_isae` loads SAELens and torch, which takes
seconds. `isae --help` and shell completion do without. Commands import what they need.
"""
