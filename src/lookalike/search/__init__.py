"""Exact ranking: the nearest images of all, and the ranks of the right ones."""
