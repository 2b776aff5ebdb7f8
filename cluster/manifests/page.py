"""What is known of the manifests, as Markdown: every object against every release, and every mutation with what caught it."""

from __future__ import annotations

from collections import Counter
from datetime import date
from pathlib import Path

from cluster.manifests.mutations import OF_RULES, OF_SCHEMAS, found_by_rules, found_by_schemas
from cluster.manifests.objects import name_of
from cluster.manifests.render import Rendering, kubectl_versions
from cluster.manifests.rules import RULES, check
from cluster.manifests.schemas import errors, targets
from ssat_ray.provenance import git_commit, installed
from ssat_ray.report.words import short_commit

PACKAGES = ("jsonschema", "kubernetes-validate", "PyYAML")


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
    lines += [
        "",
        *(f"- {target}: {count} valid objects" for target, count in sorted(valid.items())),
    ]
    return lines, wrong


def mutation_table(rendered: tuple[Rendering, ...], folder: Path) -> tuple[list[str], list[str]]:
    """A Markdown table of mutations and what caught each, and those that nothing caught under their own name."""
    by_path = {rendering.path: rendering for rendering in rendered}
    lines = ["| mutation of | field | must be found as | found by |", "|---|---|---|---|"]
    missed = []
    for mutation in (*OF_SCHEMAS, *OF_RULES):
        rendering = by_path[f"overlays/{mutation.place}"]
        if mutation in OF_RULES:
            rules = found_by_rules(mutation, rendering)
            caught, words = mutation.rule in rules, ", ".join(rules)
        else:
            by_release = found_by_schemas(mutation, rendering, folder)
            caught = all(names == [mutation.rule] for names in by_release.values())
            words = ", ".join(release for release, names in by_release.items() if names)
        if not caught:
            missed.append(f"{mutation.place} {mutation}: not caught")
        cells = (f"{mutation.place} {mutation.target}", f"`{mutation.change}`", mutation.rule)
        lines.append(f"| {' | '.join(cells)} | {words or 'NOTHING'} |")
    return lines, missed


def page(rendered: tuple[Rendering, ...], folder: Path) -> tuple[str, list[str]]:
    """The whole page, and everything that is wrong."""
    objects, invalid = table(rendered, folder)
    mutations, missed = mutation_table(rendered, folder)
    total, sort = len(OF_SCHEMAS) + len(OF_RULES), "all" if not missed else f"{len(missed)} NOT"
    versions = [f"{name} {found}" for name, found in installed(PACKAGES).items()]
    lines = [
        "# Manifests: validation and mutations",
        "",
        "Written by `make manifests` (`python -m cluster.manifests`); what is checked and how is in",
        f"[kubernetes.md](../kubernetes.md#checks). {date.today().isoformat()}, commit "
        f"{short_commit(git_commit())}; {', '.join([*kubectl_versions(), *versions])}.",
        "",
        f"{sum(len(one.objects) for one in rendered)} objects of {len(rendered)} kustomizations, "
        f"{len(invalid)} faults. {total} mutations, {sort} caught.",
        "",
        "## Objects",
        "",
        *objects,
        "",
        "## Mutations",
        "",
        "One field of a valid object is changed. A schema must find it in every release, under the name in the third",
        "column; a rule, in the object or in one that depends on it.",
        "",
        *mutations,
        "",
    ]
    return "\n".join(lines), [*invalid, *missed]
