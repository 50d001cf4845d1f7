"""Pages that open from disk: one file, no network, everything in it escaped."""
