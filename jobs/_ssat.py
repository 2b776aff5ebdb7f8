"""What every job script does: hand its arguments to one verb of `ssat`, from a clone or from the installed package."""

from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)


def main(verb: str) -> None:
    """Run `ssat VERB` with the arguments of this process.

    The scripts' folder leaves the search path first: it holds a `select.py`, which the standard library's
    `select` must win over. Ray puts the folder of `sys.argv[0]` on the path of its workers, so that
    becomes the repository's root, where the workers find the package too.
    """
    sys.path[:] = [place for place in sys.path if os.path.abspath(place or ".") != HERE]
    from importlib.util import find_spec

    if find_spec("ssat_ray") is None:
        sys.path.insert(0, ROOT)
    from ssat_ray.cli import main as ssat

    sys.argv = [os.path.join(ROOT, "ssat"), verb, *sys.argv[1:]]
    ssat()
