"""One function a verb: what `lookalike VERB` does, and what Python calls. Prints nothing."""
