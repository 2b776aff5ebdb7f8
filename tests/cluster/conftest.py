"""Shared: all kustomizations, rendered once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.manifests.render import Rendering, kubectl, renderings
from cluster.manifests.schemas import PLACE, crds


@pytest.fixture(scope="session")
def rendered() -> dict[str, Rendering]:
    """Every kustomization, by its path."""
    if kubectl() is None:
        pytest.skip("kubectl, which renders the manifests, is not installed")
    return {one.path: one for one in renderings()}


@pytest.fixture(scope="session")
def crd_folder() -> Path:
    """The folder of CRD schemas."""
    folder = crds()
    if folder is None:
        pytest.skip(f"{PLACE} is unset: it names the folder of CRD schemas (docs/kubernetes.md)")
    return folder
