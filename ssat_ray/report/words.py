"""What the page, the Markdown table and the terminal share: orders, names, numbers and sentences."""

import math
from collections.abc import Iterable
from typing import Any

from ssat_ray.config import ROWS

Row = dict[str, Any]

SELECTORS = ("pcs", "lcs-km", "lcs-gmm", "gmm-ll", "easy", "pcg", "lcg-km", "lcg-gmm")
ABOUT = {
    "none": "the labelled images alone",
    "random": "a random part of the pool",
    "pcs": "least confident images",
    "lcs-km": "between two k-means clusters",
    "lcs-gmm": "between two Gaussian components",
    "gmm-ll": "lowest density first",
    "easy": "lcs-km reversed, a control",
    "pcg": "made to be least confident",
    "lcg-km": "made between two k-means clusters",
    "lcg-gmm": "made between two Gaussian components",
    "full": "the whole pool",
}
ATTACKS = ("clean", "pgd", "apgd-ce", "autoattack")
"""Measures of accuracy, the weakest attack first."""
MOST_CLASSES = 20
"""Classes that tables have columns for."""
STAGES = (
    "pool",
    "checkpoint",
    "ddpm",
    "intermediate",
    "pretrain",
    "generate",
    "synth",
    "cluster",
    "score",
    "finetune",
    "select",
    "train",
)
"""Stages a row pays for, in the order of the pipeline; attacks and the report are not among them."""


def radius(results: Row) -> str:
    """How far an attack may go, for a sentence: `eps 0.15`, or `eps 0.5 (L2)`."""
    return f"eps {results['eps']}" + (" (L2)" if results["norm"] == "l2" else "")


def bound(results: Row) -> str:
    """The same in words."""
    if results["norm"] == "l2":
        return f"the squared changes of an image's pixels add up to at most {results['eps']}²"
    return f"each pixel changes by at most {results['eps']}"


# -- numbers ------------------------------------------------------------------------------------------


def signed(points: float) -> str:
    """Percentage points with a sign, one decimal: +1.2 or -0.3 with a true minus."""
    text = f"{points:+.1f}"
    return ("0.0" if float(text) == 0 else text).replace("-", "\N{MINUS SIGN}")


def interval(entry: dict[str, Any], sign: bool = False) -> str:
    """Mean and 95 % interval for a table in plain text: 83.2 [80.0, 86.0]."""
    form = signed if sign else "{:.1f}".format
    text = f"{form(entry['mean'])} [{form(entry['low'])}, {form(entry['high'])}]"
    return text.replace("\N{MINUS SIGN}", "-")


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them: 0.42 s, 41 s, 3 min 20 s, 1 h 05 min."""
    if seconds is None:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float | None) -> str:
    """Bytes in binary units, three significant digits."""
    if count is None:
        return "–"
    power = min(4, int(math.log(count, 1024) + 1e-9)) if count >= 1 else 0
    unit = ("B", "KiB", "MiB", "GiB", "TiB")[power]
    value = count / 1024**power
    return f"{value:.0f} {unit}" if power == 0 or value >= 100 else f"{value:.3g} {unit}"


def count(value: float | None, separator: str = "\N{NARROW NO-BREAK SPACE}") -> str:
    """A whole number with a separator, by default a thin space, between thousands."""
    return "–" if value is None else f"{round(value):,}".replace(",", separator)


def percent(share: float | None) -> str:
    """A share of one as a percentage with three significant digits: 40 %, 0.0123 %."""
    if share is None:
        return "–"
    digits = f"{100 * share:.0f}" if abs(share) >= 0.9995 else f"{100 * share:.3g}"
    if "e" in digits:
        digits = f"{100 * share:.9f}".rstrip("0").rstrip(".")
    return f"{digits}\N{NO-BREAK SPACE}%".replace("-", "\N{MINUS SIGN}")


def share(value: float | None) -> str:
    """A share of one in percent with one decimal, without the sign: 96.2."""
    return "–" if value is None else f"{100 * value:.1f}"


def number(value: float | None) -> str:
    """A measured value with four significant digits and a true minus: 0.5, −41.25, 3.207 × 10⁸."""
    if value is None:
        return "–"
    digits, _, exponent = f"{value:.4g}".partition("e")
    power = f" × 10{_raised(int(exponent))}" if exponent else ""
    return digits.replace("-", "\N{MINUS SIGN}") + power


def _raised(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def power_of_ten(value: float | None) -> str:
    """FLOPs: 3.2 x 10^12 in text."""
    if not value:
        return "–"
    exponent = math.floor(math.log10(value))
    return f"{value / 10**exponent:.1f} × 10{_raised(exponent)}"


def mean(values: Iterable[float | None] | None) -> float | None:
    """The mean of what is not None, or None where nothing is left."""
    known = [value for value in values or () if value is not None]
    return sum(known) / len(known) if known else None


# -- what a row says ----------------------------------------------------------------------------------


def steps(row: Row, key: str, separator: str = "\N{NARROW NO-BREAK SPACE}") -> tuple[str, str]:
    """Mean steps over seeds, and a note; ≥ and "limit" where a seed ended at `train.max_steps`."""
    text, hit = count(mean(row["steps"][key]), separator), row["steps"]["hit_max_steps"]
    if not any(hit):
        return text, ""
    return f"≥ {text}", "limit" if all(hit) else f"limit {sum(hit)}/{len(hit)}"


def steps_in_text(row: Row) -> str:
    """All steps of a row for the tables in plain text: 500, or ≥ 1,000 (limit 2/3)."""
    text, note = steps(row, "total", ",")
    return f"{text} ({note})" if note else text


def num_images(row: Row) -> int:
    """Images that a row trains on, labelled and pool together."""
    return int(row["images"]["labelled"] + row["images"]["pool"])


def peak_memory(row: Row) -> tuple[float, str]:
    """The largest peak of a row's stages (bytes), and the stage that had it."""
    peaks = row["peak_memory_bytes"]
    stages = {stage: peak for stage, peak in peaks.items() if stage != "max"}
    return peaks["max"], max(stages, key=lambda stage: stages[stage]) if stages else ""


def attacks_in(rows: list[Row]) -> list[str]:
    """Measures that any row has, in order."""
    return [attack for attack in ATTACKS if any(attack in row["accuracy"] for row in rows)]


def attack_names(rows: list[Row]) -> dict[str, str]:
    """What each measure may be called."""
    return {
        attack: next(row["accuracy"][attack]["name"] for row in rows if attack in row["accuracy"])
        for attack in attacks_in(rows)
    }


def shown_classes(row: Row) -> range:
    """Classes that a table has a column for: all, or none where they are too many."""
    num_classes = len(row["accuracy"]["pgd"]["by_class"])
    return range(num_classes if num_classes <= MOST_CLASSES else 0)


def class_cells(row: Row) -> list[str]:
    """PGD accuracy (percent) of the row's worst class, with its number, then of each of `shown_classes`."""
    entry = row["accuracy"]["pgd"]
    accuracies, worst = entry["by_class"], entry["worst_class"]
    shown = [accuracies[label] for label in shown_classes(row)]
    cells = ["–" if value is None else f"{value:.1f}" for value in shown]
    return [f"{accuracies[worst]:.1f} (class {worst})", *cells]


def stages_in(rows: list[Row]) -> list[str]:
    """Stages that any row pays for, in order, unknown ones last."""
    seen = {stage: None for row in rows for stage in row["seconds"] if stage != "total"}
    return sorted(seen, key=lambda stage: STAGES.index(stage) if stage in STAGES else len(STAGES))


def in_order(rows: list[Row]) -> list[Row]:
    """Rows in the order of the method's tables, unknown ones last."""
    return sorted(rows, key=lambda row: ROWS.index(row["row"]) if row["row"] in ROWS else len(ROWS))


def notes(results: dict[str, Any]) -> list[str]:
    """Sentences under the table of costs: what ≥ means, what the search over recipes took, how labels agree."""
    found = []
    if any(any(row["steps"]["hit_max_steps"]) for row in results["rows"]):
        found.append(
            "≥ (limit): train.max_steps ended the training before its plateau, in all seeds or in "
            "k/n of them, so steps and times to convergence are lower bounds."
        )
    for row in results["rows"]:
        kept = mean(row["seconds_train"])
        more = row["seconds_all_recipes"] - kept if kept is not None else 0.0
        if more > 0.01:  # more than rounding
            over = ", mean over seeds" if len(row["seeds"]) > 1 else ""
            found.append(
                f"Choosing {row['row']}'s recipe took {duration(more)} more{over}; "
                "the row's time does not count it."
            )
    found += [
        f"{stage['label']}: {100 * stage['label_agreement']:.1f} % of the images are, to the intermediate "
        "model that labels them, of the class that was asked for."
        for stage in results.get("stages", [])
        if "label_agreement" in stage
    ]
    return found


# -- provenance ---------------------------------------------------------------------------------------


def short_commit(commit: str | None) -> str:
    """The first ten digits of a commit, still marked where files had been changed."""
    digits, dash, mark = (commit or "unknown").partition("-")
    return digits[:10] + dash + mark


def machine_name(machine: dict[str, Any] | str | None) -> str:
    """A machine in one line: AMD EPYC, 2 cores, 23.5 GiB; other facts of it follow."""
    if not isinstance(machine, dict):
        return str(machine or "unknown")
    forms = {"cpu": "{}", "cores": "{} cores", "memory_gib": "{} GiB", "gpus": "{}"}
    forms["platform"] = "{}"
    known = [form.format(machine[key]) for key, form in forms.items() if key in machine]
    others = [
        f"{key} {value}"
        for key, value in sorted(machine.items())
        if key not in (*forms, "python") and isinstance(value, str | int | float)
    ]
    return ", ".join(known + others)


# -- the verdict --------------------------------------------------------------------------------------


def settled(difference: dict[str, Any]) -> int:
    """+1 or -1 where the 95 % interval lies above or below 0, otherwise 0."""
    return int(difference["low"] > 0) - int(difference["high"] < 0)


def _difference(difference: dict[str, Any]) -> str:
    paired = "paired 95 %" if difference.get("paired") else "95 %"
    return (
        f"{signed(difference['mean'])} points, {paired} interval "
        f"{signed(difference['low'])} to {signed(difference['high'])}"
    )


def _verdict_on_pool(rows: dict[str, Row], attack: str) -> str:
    difference = rows["full"]["differences"].get("none") if "full" in rows else None
    if difference is None:
        return "Whether the generated pool helps was not measured (it takes the rows full and none)"
    pool, alone = "the whole generated pool", "the labelled images alone"
    outcome = {
        1: f"{pool.capitalize()} raises {attack} robust accuracy over {alone}",
        -1: f"{pool.capitalize()} lowers {attack} robust accuracy below {alone}",
        0: f"Between {pool} and {alone} there is no difference in {attack} robust accuracy "
        "that 95 % settles",
    }
    return f"{outcome[settled(difference)]} ({_difference(difference)})"


def _verdict_on_selectors(rows: dict[str, Row]) -> str:
    found = {
        name: rows[name]["differences"]["random"]
        for name in SELECTORS
        if name in rows and "random" in rows[name]["differences"]
    }
    if not found:
        return "no selector was compared with a random choice"
    better = [f"{name} ({_difference(d)})" for name, d in found.items() if settled(d) > 0]
    worse = [f"{name} ({_difference(d)})" for name, d in found.items() if settled(d) < 0]
    parts = []
    if better:
        parts.append(f"better than a random choice of the same size: {', '.join(better)}")
    if worse:
        parts.append(f"worse than a random choice of the same size: {', '.join(worse)}")
    rest = [name for name in found if settled(found[name]) == 0]
    if rest:
        parts.append(
            f"between {', '.join(rest)} and a random choice of the same size "
            "there is no difference that 95 % settles"
        )
    return "; ".join(parts)


def verdict(results: dict[str, Any]) -> str:
    """One sentence: does the pool help, does any selector beat random, how far to trust it."""
    rows = {row["row"]: row for row in results["rows"]}
    attack = attack_names(results["rows"])["pgd"]
    seeds = len(results["seeds"])
    trust = (
        "with a single seed, the intervals are over test images only and say nothing about seeds"
        if seeds == 1
        else f"intervals over {seeds} seeds and the test images together"
    )
    return f"{_verdict_on_pool(rows, attack)}; {_verdict_on_selectors(rows)}; {trust}."
