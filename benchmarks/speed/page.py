"""All tables of speed on one page: `make bench` for the short ones, or

    python benchmarks/speed/page.py --peers PEERS/bin/python --out benchmarks/results/speed.md

Sections are scripts of this folder, each a process of its own, one after the other; name some to
run only these. It needs a quiet machine, and without `--short` most of an hour on two cores; for
peers see embedding.py, for numerics LOOKALIKE_REAL_DATA.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from machine import describe

SHORT: dict[str, list[str]] = {
    "ceilings": [],
    "reading": [],
    "embedding": ["--models", "B/32", "--rounds", "1", "--share", "0.25"],
    "training": ["--models", "B/32", "--rounds", "1"],
    "overheads": ["--images", "1000000"],
    "numerics": [],
}
"""Each section, and what makes it short."""
MADE = "<!-- from here on made by benchmarks/speed/page.py; what stands above is kept -->"
ON_DEVICES = ("ceilings", "embedding", "training")
TIMED = ("reading", "embedding", "training")  # in rounds


def main() -> None:
    """Runs the sections, writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SHORT))
    parser.add_argument("--peers", help="a Python that has the peers; none: without them")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for sections that take it")
    parser.add_argument("--short", action="store_true", help="small models, one round")
    parser.add_argument("--rounds", type=int, help="of which medians are taken; usually three")
    parser.add_argument("--out", help="a file; none: stdout")
    given = parser.parse_args()
    sections = given.sections or [
        name for name in SHORT if not (given.short and name == "numerics")
    ]
    if not set(sections) <= set(SHORT):
        parser.error(f"expected some of {', '.join(SHORT)}; got {', '.join(sections)}")
    machine = describe("torch", "transformers", device=given.device)
    page = [f"{_command(given, sections)}. {machine}."]
    if given.peers:
        page.append(f"Peers, in an environment of their own: {_versions(given.peers)}.")
    for name in sections:
        print(f"== {name}", file=sys.stderr)
        arguments = [*SHORT[name]] if given.short else []
        if name in ON_DEVICES:
            arguments += ["--device", given.device]
        if name == "embedding" and given.peers:
            arguments += ["--peers", given.peers]
        if given.rounds and name in TIMED:
            arguments += ["--rounds", str(given.rounds)]
        script = Path(__file__).with_name(f"{name}.py")
        done = subprocess.run(
            [sys.executable, str(script), *arguments], stdout=subprocess.PIPE, check=True
        )
        page += [f"## {name.capitalize()}", done.stdout.decode().strip()]
        if given.out:  # so far: what comes may take long, or fail
            _write(Path(given.out), page)
    if not given.out:
        print("\n\n".join(page))


def _write(out: Path, page: list[str]) -> None:
    """Writes the page below what was said of it."""
    before = out.read_text(encoding="utf-8") if out.exists() else ""
    kept, mark, _ = before.partition(MADE)
    said = kept if mark else "# Speed\n\n"
    out.write_text("\n\n".join([f"{said}{MADE}", *page]) + "\n", encoding="utf-8")


def _command(given: argparse.Namespace, sections: list[str]) -> str:
    """What was typed, but for paths."""
    words = [*(["--short"] if given.short else []), *(["--peers ..."] if given.peers else [])]
    words += [f"--device {given.device}"] if given.device != "cpu" else []
    words += [f"--rounds {given.rounds}"] if given.rounds else []
    return f"`python benchmarks/speed/page.py {' '.join([*words, *sections])}`"


def _versions(python: str) -> str:
    """Of the peers."""
    ask = (
        "from importlib.metadata import version; print(', '.join(f'{name} {version(name)}' for name"
        " in ('torch', 'torchvision', 'transformers', 'sentence-transformers', 'open_clip_torch',"
        " 'pillow')))"
    )
    return subprocess.check_output([python, "-c", ask], text=True).strip()


if __name__ == "__main__":
    main()
