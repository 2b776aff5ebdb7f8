"""`python -m cluster.manifests`: render all manifests, validate them, and print the table of objects and releases.

Needs kubectl, and `SSAT_CRDS` for the custom resources. Exit code 1 if anything is wrong, 2 if it could not be looked at.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from cluster.manifests.objects import name_of
from cluster.manifests.render import Rendering, kubectl, renderings
from cluster.manifests.rules import RULES, check
from cluster.manifests.schemas import PLACE, crds, errors, targets


def table(rendered: tuple[Rendering, ...], folder: Path) -> tuple[list[str], list[str]]:
    """A Markdown table of objects and what they were validated against, and everything that is wrong."""
    lines = [
        f"| kustomization | object | validated against | {len(RULES)} rules |",
        "|---|---|---|---|",
    ]
    wrong: list[str] = []
    valid: Counter[str] = Counter()
    for rendering in rendered:
        for one in rendering.objects:
            cells = []
            for target in targets(one, folder):
                found = errors(one, target, folder)
                valid[target] += not found
                cells.append(f"{target}: {'ok' if not found else 'INVALID'}")
                wrong += [f"{rendering.path} {name_of(one)} ({target}): {text}" for text in found]
            broken = check(one, rendering.world)
            wrong += [
                f"{rendering.path} {found.name} (rule {found.rule}): {found.text}"
                for found in broken
            ]
            words = "ok" if not broken else ", ".join(sorted({found.rule for found in broken}))
            lines.append(f"| {rendering.path} | {name_of(one)} | {', '.join(cells)} | {words} |")
    lines += ["", *(f"{target}: {count} valid objects" for target, count in sorted(valid.items()))]
    return lines, wrong


def main() -> int:
    """Print the table; returns the exit code."""
    folder = crds()
    if folder is None or kubectl() is None:
        print(f"set {PLACE} to the folder of CRD schemas, and install kubectl", file=sys.stderr)
        return 2
    lines, wrong = table(renderings(), folder)
    print("\n".join(lines))
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
