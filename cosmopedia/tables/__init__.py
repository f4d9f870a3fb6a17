"""Parquet between stages: contracts, streaming readers and writers, sorting, row counts, metrics files."""
