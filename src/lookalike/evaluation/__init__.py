"""How good retrieval is: metrics, the protocol they are measured under, and their files."""
