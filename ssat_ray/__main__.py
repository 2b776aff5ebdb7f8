"""`python -m ssat_ray` is `ssat`."""

import sys

try:
    from ssat_ray.cli import main
except ModuleNotFoundError as error:  # a job's `python` is the first on its cluster's PATH
    sys.exit(
        f"ssat: this Python, {sys.executable}, has no package {error.name}. On a cluster, start Ray where the Python "
        "with the packages is the first on PATH (PATH=$PWD/.venv/bin:$PATH ray start …), or use ssat submit "
        "--requirements."
    )

main()
