"""Benchmark scores of a model: cloze tasks for lighteval, and what is made of its answers."""
