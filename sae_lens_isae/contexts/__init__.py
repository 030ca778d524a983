"""What a latent is: text it is active on, tokens it promotes, and the table that shows both."""
