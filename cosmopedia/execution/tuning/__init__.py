"""`cosmo tune`: the engine's settings tried on a run's own prompts, before the bill."""
