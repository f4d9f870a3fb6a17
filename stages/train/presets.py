"""Shapes and lengths of training that go together; `train.preset` takes one in place of what the profile says.

Proxies are for ablations: what a small model learns from two corpora mostly ranks as what a large one does. Vocabulary
and everything else stay as params.yaml and the profile say.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "rehearsal": {  # 3.4M parameters with a vocabulary of 4,096; minutes on two cores
        "architecture": {"layers": 6, "heads": 3, "kv_heads": 3, "width": 192, "intermediate": 512,
                         "max_positions": 512, "rope_theta": 10000, "tied_embeddings": True},
        "sequence": 256, "batch": 8, "micro_batch": 8, "steps": 200, "learning_rate": 2.0e-3, "warmup_steps": 20,
    },
    "130m": {  # 134M with 32,000; GPT-2 small's shape and GPT-3 small's rate; 20 tokens a parameter (Chinchilla): 2.7B
        "architecture": {"layers": 12, "heads": 12, "kv_heads": 12, "width": 768, "intermediate": 2048,
                         "max_positions": 2048, "rope_theta": 10000, "tied_embeddings": False},
        "sequence": 2048, "batch": 256, "micro_batch": 16, "steps": 5100, "learning_rate": 6.0e-4, "warmup_steps": 500,
    },
    "360m": {  # 364M with 32,000; GPT-3 medium's depth, width and rate; 20 tokens a parameter: 7.3B
        "architecture": {"layers": 24, "heads": 16, "kv_heads": 16, "width": 1024, "intermediate": 2688,
                         "max_positions": 2048, "rope_theta": 10000, "tied_embeddings": False},
        "sequence": 2048, "batch": 256, "micro_batch": 8, "steps": 13900, "learning_rate": 3.0e-4, "warmup_steps": 700,
    },
    "1b": {  # cosmo-1b: 1.74B with 32,000; 180B tokens, about six epochs of 30B (its model card)
        "architecture": {"layers": 24, "heads": 16, "kv_heads": 16, "width": 2048, "intermediate": 8192,
                         "max_positions": 2048, "rope_theta": 10000, "tied_embeddings": False},
        "sequence": 2048, "batch": 640, "micro_batch": 8, "steps": 137000, "learning_rate": 3.0e-4,
        "warmup_steps": 2000,
    },
}  # fmt: skip
