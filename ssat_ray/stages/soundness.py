"""Whether the attacks of a comparison can be believed: signs of masked gradients, by row and seed."""

from __future__ import annotations

from typing import Any

from ssat_ray.adversarial.evaluation import masking_warnings
from ssat_ray.errors import RunFailed

Record = dict[str, Any]


def signs_of(row: Record, seed: int) -> list[str]:
    """Sentences on what speaks against the attacks on one classifier; empty is good.

    Args:
        row: a row of results.json (docs/results.md).
        seed: one of its seeds.
    """
    accuracies, found = {}, []
    for attack, entry in row["accuracy"].items():
        if seed in entry["seeds"]:
            index = entry["seeds"].index(seed)
            accuracies[attack] = entry["by_seed"][index] / 100
            found += entry["signs"][index]
    return masking_warnings(accuracies) + found


def masking(rows: list[Record]) -> list[str]:
    """The signs of all rows and seeds, each with its row and seed."""
    return [
        f"{row['row']}, seed {seed}: {text}"
        for row in rows
        for seed in row["seeds"]
        for text in signs_of(row, seed)
    ]


def masked_rows(results: Record) -> list[str]:
    """Rows and seeds where AutoAttack leaves more images correct than PGD: the evaluation is unsound."""
    found = []
    for row in results["rows"]:
        auto, pgd = row["accuracy"].get("autoattack"), row["accuracy"]["pgd"]
        for seed, value in zip(auto["seeds"], auto["by_seed"], strict=True) if auto else ():
            if value > pgd["by_seed"][pgd["seeds"].index(seed)]:
                found.append(f"{row['row']} (seed {seed})")
    return found


def require_sound(results: Record) -> None:
    """Raises RunFailed, which names them, where there are `masked_rows`."""
    masked = masked_rows(results)
    if masked:
        raise RunFailed(
            f"AutoAttack accuracy above PGD accuracy in {', '.join(masked)}: PGD misses what AutoAttack must at least "
            "match, so the evaluation is unsound (masked gradients). --allow-masking keeps the table."
        )
