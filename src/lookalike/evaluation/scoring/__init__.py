"""Numbers on ranks and embeddings, and how sure they are."""
