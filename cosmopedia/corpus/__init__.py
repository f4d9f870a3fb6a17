"""Datatrove pipelines over the corpus, a file or several per cell, and the words of a text."""
