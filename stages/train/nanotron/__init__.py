"""nanotron as a trainer: patches, config, job folder, worker process, and the weights on their way to transformers."""
