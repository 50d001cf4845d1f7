"""What training makes small: each called as `loss(embeddings, labels)`."""
