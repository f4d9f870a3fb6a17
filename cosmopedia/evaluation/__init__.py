"""Scores of models: of one item, and what follows from those of several models."""
