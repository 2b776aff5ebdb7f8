"""`python -m ssat_ray` is `ssat`."""

from ssat_ray.cli import main

main()
