"""What lies in files that others may have written, and how a model is made of it."""
