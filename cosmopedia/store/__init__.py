"""The completion store: its index, append-only segments, parquet files, a bucket, maintenance."""
