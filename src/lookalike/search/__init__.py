"""Exact ranking: the nearest pictures of all, and the ranks of the right ones."""
