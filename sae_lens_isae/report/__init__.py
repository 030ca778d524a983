"""Tables for the terminal and self-contained HTML pages. Nothing but the command line imports it."""
