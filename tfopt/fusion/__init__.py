"""Many models, one model: weighted, stacked, averaged."""
