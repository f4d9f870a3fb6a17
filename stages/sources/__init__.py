"""Seed sources: reading a dataset from the hub or from a local file, and one reader a source."""
