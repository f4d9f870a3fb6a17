"""Parquet between stages: contracts, streaming readers and writers, row accounting, metrics files."""
