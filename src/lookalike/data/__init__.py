"""Images: found, decoded, cut to size and dealt into batches. Knows of no model."""
