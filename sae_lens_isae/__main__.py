"""`python -m sae_lens_isae` is the `isae` command."""

from sae_lens_isae.cli import main

main()
