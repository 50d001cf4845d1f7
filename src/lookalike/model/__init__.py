"""Images' pixels to L2-normalised embeddings. Knows of no label."""
