"""The findings as a page: every kind with its images side by side."""

from __future__ import annotations

from lookalike.checks.findings import CheckResult
from lookalike.progress import Progress
from lookalike.report.page import render_page
from lookalike.report.thumbnails import Thumbnails

MAX_FINDINGS = 60
"""Of each kind; the page says how many it leaves out, and check.json has them all."""

MAX_IMAGES = 12
_ROLES = {
    "suspect": ("wrong", "this one"),
    "suggested": ("right", "like these"),
    "own": ("", "nearest of its own class"),
}


def write_page(result: CheckResult, progress: Progress) -> str:
    """Returns the page as HTML, complete in itself."""
    kinds = result.by_kind()
    thumbnails = Thumbnails()
    with progress.task("drawing", len(kinds), "kinds") as task:
        for kind, findings in kinds:
            if kind.name != "unreadable":  # of which there is nothing to be seen
                thumbnails.add(image.ref for one in findings[:MAX_FINDINGS]
                               for image in one.images[:MAX_IMAGES])  # fmt: skip
            task.advance()
    facts = {
        "result": result,
        "kinds": kinds,
        "roles": _ROLES,
        "max_findings": MAX_FINDINGS,
        "max_images": MAX_IMAGES,
        "number_of": thumbnails.number_of,
        "num_without_thumbnail": thumbnails.num_left_out,
        "thumbnails": thumbnails.uris,
    }
    return render_page("check.html.j2", facts)
