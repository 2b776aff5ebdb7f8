"""The comparison as a Markdown table: what `make results` prints and the README shows."""

from __future__ import annotations

from typing import Any

ATTACKS = ("clean", "pgd", "apgd-ce", "autoattack")


def markdown_table(results: dict[str, Any]) -> str:
    """Rows with accuracies and 95 % intervals (percent), images, steps, total seconds and memory.

    AutoAttack may cover fewer seeds than the rest; its heading says so.
    """
    rows = results["rows"]
    attacks = [a for a in ATTACKS if a in rows[0]["accuracy"]]
    heads = ["row", "images"]
    for attack in attacks:
        entry = rows[0]["accuracy"][attack]
        fewer = len(entry["seeds"]) < len(rows[0]["seeds"])
        seeds = f" (seed {', '.join(map(str, entry['seeds']))})" if fewer else ""
        heads.append(f"{entry['name']} %{seeds}")
    heads += ["PGD minus `random`, points", "steps", "total s", "peak MiB"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" + "---:|" * (len(heads) - 1)]
    for row in rows:
        difference = row["differences"].get("random")
        cells = [
            f"`{row['row']}`",
            f"{row['images']['labelled'] + row['images']['pool']:,}",
            *(_interval(row["accuracy"][a], "{:.1f}") for a in attacks),
            _interval(difference, "{:+.1f}") if difference else "",
            f"{sum(row['steps']['total']) / len(row['seeds']):,.0f}",
            f"{row['seconds']['total']:,.0f}",
            f"{row['peak_memory_bytes']['max'] / 2**20:,.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    machine, seeds = results["machine"], ", ".join(map(str, results["seeds"]))
    lines += [
        "",
        f"Seeds {seeds}; 95 % intervals over seeds and the {results['data']['num_test']} test images "
        f"together; eps {results['eps']}. Machine: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB; torch {machine['versions']['torch']}, "
        f"Ray {machine['versions']['ray']}; {results['created'][:10]}, "
        f"commit {str(results['git_commit'])[:10]}.",
    ]
    return "\n".join(lines) + "\n"


def _interval(entry: dict[str, Any], form: str) -> str:
    mean, low, high = (form.format(entry[k]) for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
