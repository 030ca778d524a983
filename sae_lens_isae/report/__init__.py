"""Tables for the terminal and self-contained HTML pages; only demo and command line use them."""
