"""nanotron as a trainer: its repairs, its config, its process, its launch, and the way back to transformers."""
