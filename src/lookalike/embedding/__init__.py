"""Embedding many pictures, and finding the nearest ones exactly."""
