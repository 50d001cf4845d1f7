import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from lookalike.report.page import human_bytes, render_page
from lookalike.report.thumbnails import Thumbnails


def image(path: Path, size: tuple[int, int] = (300, 200), format: str = "JPEG") -> str:
    Image.linear_gradient("L").resize(size).convert("RGB").save(path, format)
    return str(path)


def test_a_thumbnail_keeps_the_shape_of_its_image(tmp_path: Path) -> None:
    path = image(tmp_path / "a.jpg", (3000, 1500))
    thumbnails = Thumbnails(side_px=64)
    thumbnails.add([path])
    kind, data = thumbnails.uris[thumbnails.number_of[path]].split(",")
    assert kind == "data:image/webp;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (64, 32)


def test_each_image_is_there_once_and_unreadable_ones_have_none(tmp_path: Path) -> None:
    good, bad = image(tmp_path / "a.jpg"), tmp_path / "b.jpg"
    bad.write_text("<html>")
    thumbnails = Thumbnails()
    thumbnails.add([good, str(bad), good])
    thumbnails.add([good])
    assert thumbnails.number_of == {good: 0}
    assert len(thumbnails.uris) == 1
    assert thumbnails.num_left_out == 0


def test_thumbnails_stay_within_their_bound_and_count_what_they_leave_out(tmp_path: Path) -> None:
    paths = [image(tmp_path / f"{i}.jpg") for i in range(5)]
    one = Thumbnails()
    one.add(paths[:1])
    thumbnails = Thumbnails(max_bytes=int(2.5 * one.num_bytes))
    done: list[int] = []
    thumbnails.add(paths, on_progress=done.append)
    assert sum(done) == 5
    assert list(thumbnails.number_of) == paths[:2]  # the important ones come first
    assert thumbnails.num_left_out == 3
    assert thumbnails.num_bytes == sum(map(len, thumbnails.uris)) <= thumbnails.max_bytes


def test_a_page_escapes_what_it_is_given_and_misses_nothing_silently() -> None:
    page = render_page("base.html.j2", {"thumbnails": ["</script><b>"]})
    assert "</script><b>" not in page
    with pytest.raises(TypeError, match="StrictUndefined"):
        render_page("base.html.j2", {})


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2.5e12, "2500.0 GB")],
)
def test_sizes_are_shown_as_people_say_them(number: float, text: str) -> None:
    assert human_bytes(number) == text
