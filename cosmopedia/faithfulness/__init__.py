"""What a text says beyond its source, judged without a model. `judge.judge` is where to begin."""
