"""`python -m lookalike` is `lookalike`."""

from __future__ import annotations

import sys

from lookalike.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
