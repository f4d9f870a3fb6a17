"""Models that wrote on the same prompts, side by side."""
