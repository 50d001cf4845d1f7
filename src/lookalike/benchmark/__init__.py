"""How long each stage between files and embeddings takes, and what would make it shorter."""
