"""The objectives: each called as `loss(embeddings, labels)`, and made as small as can be."""
