"""Language models from token shards: the shards, the order of their windows, the trainers."""
