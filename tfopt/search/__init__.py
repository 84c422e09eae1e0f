"""Search for the best variant of a model under constraints."""
