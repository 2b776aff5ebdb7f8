"""Mistakes in otherwise valid manifests: each must be found, under the name of the rule that is about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.manifests.mutations import (
    OF_RULES,
    OF_SCHEMAS,
    Mutation,
    found_by_rules,
    found_by_schemas,
)
from cluster.manifests.render import Rendering
from cluster.manifests.rules import RULES


@pytest.mark.parametrize("mutation", OF_SCHEMAS, ids=str)
def test_a_schema_finds_it_in_every_release(
    mutation: Mutation, rendered: dict[str, Rendering], crd_folder: Path
) -> None:
    found = found_by_schemas(mutation, rendered[f"overlays/{mutation.place}"], crd_folder)
    assert found and all(names == [mutation.rule] for names in found.values()), found


@pytest.mark.parametrize("mutation", OF_RULES, ids=str)
def test_a_rule_finds_it(mutation: Mutation, rendered: dict[str, Rendering]) -> None:
    assert mutation.rule in found_by_rules(mutation, rendered[f"overlays/{mutation.place}"])


def test_every_rule_has_two_mutations_or_more() -> None:
    named = [mutation.rule for mutation in (*OF_RULES, *OF_SCHEMAS)]
    for rule in (*RULES, "unknown-field", "wrong-type"):
        assert named.count(rule) >= 2, rule
