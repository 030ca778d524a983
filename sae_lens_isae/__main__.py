"""`python -m sae_lens_isae` is `isae`."""

from isae_cli.app import main

main()
