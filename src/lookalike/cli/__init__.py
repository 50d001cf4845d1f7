"""The command `lookalike`: flags in, calls to the library, tables out. No logic of its own."""
