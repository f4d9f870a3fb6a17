"""Prompt templates: files with slots, and the columns that fill them."""
