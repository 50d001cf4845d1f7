"""The findings as a page: every kind with its images side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lookalike.checks.findings import CheckResult, Finding, FoundImage, Kind
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
    bars = result.classes.histogram if result.classes else []
    thumbnails = Thumbnails()
    with progress.task("drawing", len(kinds), "kinds") as task:
        for kind, findings in kinds:
            if kind.name != "unreadable":  # of which there is nothing to be seen
                thumbnails.add(image.ref for one in findings[:MAX_FINDINGS]
                               for image in one.images[:MAX_IMAGES])  # fmt: skip
            task.advance()
    return render_page(
        "check.html.j2",
        {
            "result": result,
            "kinds": [_kind_facts(kind, findings, thumbnails) for kind, findings in kinds],
            "longest_bar": max((bar.num_classes for bar in bars), default=1),
            "bars": bars,
            "num_without_thumbnail": thumbnails.num_left_out,
            "thumbnails": thumbnails.uris,
        },
    )


def _kind_facts(kind: Kind, findings: Sequence[Finding], thumbnails: Thumbnails) -> dict[str, Any]:
    shown_here = findings[:MAX_FINDINGS]
    return {
        "kind": kind,
        "count": len(findings),
        "num_left_out": len(findings) - len(shown_here),
        "as_list": not any(
            image.ref in thumbnails.number_of for one in shown_here for image in one.images
        ),
        "findings": [
            {
                "says": finding.says,
                "images": [
                    _image_facts(image, thumbnails) for image in finding.images[:MAX_IMAGES]
                ],
                "num_left_out": max(0, len(finding.images) - MAX_IMAGES),
            }
            for finding in shown_here
        ],
    }


def _image_facts(image: FoundImage, thumbnails: Thumbnails) -> dict[str, Any]:
    tone, word = _ROLES.get(image.role, ("", ""))
    return {
        "thumbnail": thumbnails.number_of.get(image.ref),
        "where": f"{image.split}/{image.name}",
        "detail": word or image.detail,
        "tone": tone,
    }
