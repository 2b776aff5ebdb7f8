"""`python -m cluster.manifests [PAGE]`: render all manifests, validate and mutate them, and print or write the page.

Needs kubectl, and `SSAT_CRDS` for the custom resources. Exit code 1 if anything is wrong, 2 if it could not be looked at.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cluster.manifests.page import page
from cluster.manifests.render import kubectl, renderings
from cluster.manifests.schemas import PLACE, crds


def main() -> int:
    """Print the page, or write it to a file; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cluster.manifests", description=__doc__)
    parser.add_argument("page", nargs="?", type=Path, help="Markdown file; default: print it")
    out: Path | None = parser.parse_args().page
    folder = crds()
    if folder is None or kubectl() is None:
        print(f"set {PLACE} to the folder of CRD schemas, and install kubectl", file=sys.stderr)
        return 2
    text, wrong = page(renderings(), folder)
    if out is None:
        print(text)
    else:
        out.write_text(text, encoding="utf-8")
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
