"""Turn the `results.json` of a run that ends with a selection into one self-contained report.html."""

import json
from typing import Any

from ssat_ray.report import selection_figures as draw
from ssat_ray.report import words
from ssat_ray.report.drawing import STAGE_COLOURS
from ssat_ray.report.html import environment
from ssat_ray.report.words import count, duration, percent, size

Record = dict[str, Any]

FLAT = 0.1
"""The last quarter's memory within this share of the second's counts as flat."""
_THIN = "\N{NARROW NO-BREAK SPACE}"
_STAGE_FACTS = (
    "startup_seconds",
    "rows",
    "peak_pss_bytes",
    "bytes_read",
    "bytes_written",
)
_LOWEST = {"easy": "farthest from the boundary", "gmm-ll": "of the lowest density"}
_METHODS = {"kmeans": "k-means", "gmm": "Gaussian mixture"}


def _chosen(selection: Record, separator: str) -> str:
    boundary, kept = selection["boundary"], selection["images"]
    lowest = _LOWEST.get(selection["row"], "nearest the boundary")
    parts = [
        f"{count(number, separator)} {kind}"
        for number, kind in ((boundary, lowest), (kept - boundary, "at random"))
        if number
    ]
    return ", ".join(parts)


def _kept(results: Record, separator: str) -> str:
    selections = results["selections"]
    if not selections:
        return f"nothing selected of {count(results['pool']['images'], separator)} images"
    kept = sorted({selection["images"] for selection in selections})
    pool = max(selection["of_images"] for selection in selections)
    images = " to ".join(count(n, separator) for n in dict.fromkeys((kept[0], kept[-1])))
    chosen = {_chosen(selection, separator) for selection in selections}
    text = f"{images} of {count(pool, separator)} images kept"
    if len(selections) > 1:
        text += f" by each of {len(selections)} selections"
    only = chosen.pop()
    return text if chosen or not only else f"{text}: {only}"


def peak_bytes(results: Record) -> float | None:
    """The most memory that the session had at any sample; None without samples."""
    used = [sample[1] for session in results["sessions"] for sample in session["samples"]]
    known = (results["memory"] or {}).get("peak_bytes")
    return known if known is not None else max(used, default=None)


def headline(results: Record, separator: str = _THIN) -> str:
    """One sentence: how many of how many images were kept and why, in what time and memory."""
    parts = [_kept(results, separator), duration(results["total_wall_seconds"])]
    peak = peak_bytes(results)
    if peak is not None:
        parts.append(f"at most {size(peak)}")
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}."


def rise_in_words(memory: Record | None) -> str:
    """Whether memory grew between the second and the last quarter of the run's samples."""
    if memory is None or memory["rise"] is None:
        return "There are too few samples (fewer than 8) to say whether memory grew during the run."
    rise = memory["rise"]
    side = "above" if rise >= 0 else "below"
    reading = "flat" if abs(rise) <= FLAT else "growing" if rise > 0 else "falling"
    return (
        f"In the last quarter of the run the median was {size(memory['last_quarter_bytes'])}, "
        f"{percent(abs(rise))} {side} the {size(memory['second_quarter_bytes'])} of the second "
        f"quarter: {reading} (flat means within {percent(FLAT)})."
    )


def _total(stages: list[Record]) -> Record:
    def added(key: str) -> float | None:
        known = [stage[key] for stage in stages if stage[key] is not None]
        return sum(known) if known else None

    peaks = [stage["peak_pss_bytes"] for stage in stages if stage["peak_pss_bytes"] is not None]
    return {
        **{key: added(key) for key in ("seconds", "startup_seconds", "bytes_read")},
        "bytes_written": added("bytes_written"),
        "peak_pss_bytes": max(peaks, default=None),
    }


def _stages(results: Record, colours: dict[str, int]) -> list[Record]:
    stages = [dict.fromkeys(_STAGE_FACTS) | stage for stage in results["stages"]]
    for stage in stages:
        busy = stage["seconds"] + (stage["startup_seconds"] or 0.0)
        stage["rate"] = stage["rows"] / busy if stage["rows"] and busy > 0 else None
        stage["colour"] = colours[stage["stage"]]
    return stages


def _left_out(results: Record) -> list[Record]:
    """Every quarantined shard once, with the stages that met it."""
    found: dict[tuple[str, str], Record] = {}
    by_stage = [("select", selection) for selection in results["selections"]]
    by_stage += [(stage["stage"], stage) for stage in results["stages"]]
    for stage, record in by_stage:
        for shard in record.get("quarantined") or ():
            entry = found.setdefault(
                (shard["file"], shard["reason"]), {**shard, "stages": dict[str, None]()}
            )
            entry["stages"][stage] = None
    return list(found.values())


def _clusters(results: Record) -> list[Record]:
    return [
        {
            **cluster,
            "name": _METHODS.get(cluster["method"], cluster["method"]),
            "last": cluster["history"][-1] if cluster["history"] else None,
            "largest": max(cluster["shares"], default=None),
            "smallest": min(cluster["shares"], default=None),
            "chart": draw.cluster_shares(cluster, f"shares-{i}"),
        }
        for i, cluster in enumerate(results["clusters"])
    ]


def _memory_charts(results: Record, colours: dict[str, int]) -> Record | None:
    line = draw.timeline(results["sessions"])
    if line is None:
        return None
    memory = results["memory"] or None
    return {
        "wide": draw.memory_over_time(line, memory, colours, wide=True),
        "narrow": draw.memory_over_time(line, memory, colours, wide=False),
        "samples": len(line.seconds),
        "sessions": len(line.pauses) + 1,
    }


def _colours(results: Record) -> dict[str, int]:
    """A colour number for each stage, neighbours in time different."""
    names = [stage["stage"] for stage in results["stages"]]
    names += [sample[2] for session in results["sessions"] for sample in session["samples"]]
    stages = dict.fromkeys(name for name in names if name)
    return {stage: i % len(STAGE_COLOURS) for i, stage in enumerate(stages)}


def render_selection(results: Record) -> str:
    """The complete report of a selection as HTML with nothing outside it.

    Args:
        results: the content of results.json with `kind` "selection" (its schema is in docs/). Without
            sessions, samples, clusters or scores the page says so in their place.
    """
    colours = _colours(results)
    stages = _stages(results, colours)
    methods = dict.fromkeys(cluster["method"] for cluster in results["clusters"])
    left_out = _left_out(results)
    scores = [
        (score, draw.score_histogram(score, f"score-{i}"))
        for i, score in enumerate(results["scores"])
    ]
    template = environment().get_template("selection.html.j2")
    return template.render(
        results=results,
        headline=headline(results),
        pool=results["pool"],
        about=words.ABOUT,
        peak=peak_bytes(results),
        rise=rise_in_words(results["memory"] or None),
        stages=stages,
        total=_total(stages),
        memory=_memory_charts(results, colours),
        left_out=left_out,
        images_left_out=sum(shard["rows"] or 0 for shard in left_out),
        clusters=_clusters(results),
        convergence={
            _METHODS.get(method, method): svg
            for i, method in enumerate(methods)
            if (svg := draw.convergence(results["clusters"], method, f"convergence-{i}"))
            is not None
        },
        scores=[(score, svg) for score, svg in scores if svg is not None],
        config=json.dumps(results["config"], indent=2, ensure_ascii=False, default=str),
    )
