"""Numbers on the embeddings themselves, each with what it means."""

from lookalike.report.section import Context, Section


def make(_: Context) -> Section:
    """Returns the table of the health of the embeddings."""
    return Section("health", "embeddings", "Embeddings")
