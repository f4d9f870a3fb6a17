"""The corpus between generation and training: cleaning rules, deduplication, contamination, tokenising, benchmarks."""
