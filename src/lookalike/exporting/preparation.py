"""What has to be done to a picture before an exported model sees it, for programs and people."""

from __future__ import annotations

from typing import Any

from PIL import Image

from lookalike.data.transforms import Preprocessing


def preparation_of(how: Preprocessing) -> dict[str, Any]:
    """The steps in their order, as JSON holds them; sizes in px."""
    size = {"height": how.height, "width": how.width}
    cropped = how.shortest_edge is not None
    return {
        "color": "RGB",
        "resize": {"shortest_edge": how.shortest_edge} if cropped else size,
        "resample": Image.Resampling(how.resample).name.lower(),
        "center_crop": size if cropped else None,
        "scale": how.scale,
        "mean": list(how.mean),
        "std": list(how.std),
    }
