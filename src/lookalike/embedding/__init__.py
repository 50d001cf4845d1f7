"""Images and texts to embeddings: one object that embeds, and embeddings on disk."""
