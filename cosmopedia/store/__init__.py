"""The completion store: append-only segments, parquet files, a bucket, maintenance."""
