"""Embedding many images, and finding the nearest ones exactly."""
