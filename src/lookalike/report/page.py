"""From a template and facts to one self-contained HTML file."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike.evaluation.metrics import METRICS
from lookalike.files import shown

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_NAME = 100
NO_NUMBER = "\N{EN DASH}"
HUMAN_UNITS = ("bytes", "kB", "MB", "GB")


def render_page(template: str, facts: dict[str, Any]) -> str:
    """Fills a template of this folder. Whatever stands in `facts` is escaped.

    Data for scripts goes through `{{ value | tojson }}`, which keeps it from ending the script
    it stands in.
    """
    return _environment().get_template(template).render(facts)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Not escaped to ASCII: a name of emoji would take three times the room.
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": True}
    environment.filters |= {
        "shown": shown, "brief": brief, "count": "{:,}".format, "bytes": human_bytes,
        "percent": percent, "points": points, "decimals": decimals, "in_units": in_units,
    }  # fmt: skip
    return environment


def brief(name: str) -> str:
    """Returns a name of any length and content as at most `MAX_NAME` printable characters.

    What is too much is cut out of the middle: names of one class or folder differ at the end.

    >>> brief("a" * 50 + "b" * 60) == "a" * 39 + "…" + "b" * 60
    True
    """
    text = shown(name)
    return text if len(text) <= MAX_NAME else f"{text[: MAX_NAME - 61]}…{text[-60:]}"


def percent(share: float | None) -> str:
    """Returns a share as people read it.

    >>> percent(0.8153)
    '81.5%'
    """
    return NO_NUMBER if share is None else f"{_in_percent(share):.1f}%"


def points(difference: float | None) -> str:
    """Returns a difference of two shares, in percentage points, with its sign.

    >>> points(0.1185)
    '+11.9'
    """
    return NO_NUMBER if difference is None else f"{_in_percent(difference):+.1f}"


def _in_percent(share: float) -> Decimal:
    """A share in percent with one decimal, half away from zero, as the page's script rounds it.

    What arithmetic leaves behind the ninth digit decides nothing: 0.8 - 0.3125 is 48.75 exactly.
    """
    exact = Decimal(repr(round(100 * share, 9)))
    return exact.quantize(Decimal("0.1"), ROUND_HALF_UP) + 0  # no minus before a zero


def in_units(value: float | None, metric: str) -> str:
    """Returns a value of a metric as people read it: a share in percent, a rank as a number.

    >>> in_units(0.25, "mAP"), in_units(12.0, "median rank")
    ('25.0%', '12')
    """
    return percent(value) if value is None or METRICS[metric].is_share else f"{value:g}"


def decimals(number: float | None, digits: int) -> str:
    """Returns a number with so many decimals, or a dash.

    >>> decimals(0.12345, 3)
    '0.123'
    """
    return NO_NUMBER if number is None else f"{number:.{digits}f}"


def human_bytes(number: float) -> str:
    """Returns a size as people say it: 3.2 MB.

    >>> human_bytes(3_200_000)
    '3.2 MB'
    """
    unit, *larger = HUMAN_UNITS
    digits = 0 if number < 1000 else 1
    while number >= 1000 and larger:
        number /= 1000
        unit = larger.pop(0)
    return f"{number:.{digits}f} {unit}"
