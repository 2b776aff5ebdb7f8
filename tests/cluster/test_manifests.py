"""The committed manifests: generated files are current, every object is valid, every rule holds."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from cluster.manifests import page
from cluster.manifests.generate import KUBERAY, OVERLAYS, RAYJOBS, ROOT, generated
from cluster.manifests.mutations import OF_RULES, OF_SCHEMAS, Mutation
from cluster.manifests.objects import cluster_of, quantity
from cluster.manifests.page import mutation_table, table
from cluster.manifests.policies import OPERATOR
from cluster.manifests.render import Rendering, made_by_hand
from cluster.manifests.rules import check
from cluster.manifests.schemas import KUBERNETES, errors, strict, targets
from ssat_ray.config import Config
from ssat_ray.data.folder import Folder
from ssat_ray.loading import load_config

GUIDE = (ROOT / "docs/kubernetes.md").read_text()


def test_generated_files_are_those_of_the_list_of_verbs() -> None:
    for path, text in generated().items():
        assert (ROOT / path).read_text() == text, (
            f"{path}: run python -m cluster.manifests.generate"
        )


def test_no_generated_file_is_left_of_a_verb_that_is_gone() -> None:
    folders = ["stages", *(f"overlays/{overlay}/jobs" for overlay in OVERLAYS)]
    for folder in folders:
        assert {path.name for path in (ROOT / KUBERAY / folder).iterdir()} == set(RAYJOBS)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_configuration_is_the_preset_but_for_the_runtime(overlay: str) -> None:
    path = ROOT / KUBERAY / "overlays" / overlay / "platform/run.yaml"
    left_out = {"runtime", "preset"}
    own = load_config(str(path)).model_dump(exclude=left_out)
    assert own == load_config("digits").model_dump(exclude=left_out)


def test_every_object_is_valid_in_every_release(
    rendered: dict[str, Rendering], crd_folder: Path
) -> None:
    lines, wrong = table(tuple(rendered.values()), crd_folder)
    assert wrong == []
    rayjobs = [line for line in lines if "RayJob/" in line]
    assert len(rayjobs) == len(OVERLAYS) * len(RAYJOBS)
    for line in rayjobs:
        assert "kuberay v1.6.2: ok, kuberay v1.7.0: ok" in line


def test_the_page_has_every_mutation_with_what_caught_it(
    rendered: dict[str, Rendering], crd_folder: Path
) -> None:
    lines, missed = mutation_table(tuple(rendered.values()), crd_folder)
    assert missed == []
    rows = lines[2:]
    assert len(rows) == len(OF_SCHEMAS) + len(OF_RULES) >= 30
    (row,) = [line for line in rows if "spec.submisionMode" in line]
    assert row.split(" | ")[2:] == ["unknown-field", "kuberay v1.6.2, kuberay v1.7.0 |"]
    (row,) = [line for line in rows if "spec.clusterQueue" in line]
    assert row.split(" | ")[1:3] == ['`spec.clusterQueue = "shared"`', "queue"]


def test_a_mutation_that_nothing_finds_is_said(
    rendered: dict[str, Rendering], crd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmless = Mutation(
        "token", "gpu/jobs/pipeline", "RayJob/ssat-pipeline", "spec backoffLimit", 2
    )
    monkeypatch.setattr(page, "OF_RULES", [harmless])
    lines, missed = mutation_table(tuple(rendered.values()), crd_folder)
    assert lines[-1].endswith("| NOTHING |") and len(missed) == 1 and str(harmless) in missed[0]


def test_every_rule_holds_without_the_schemas(rendered: dict[str, Rendering]) -> None:
    found = [
        finding
        for one in rendered.values()
        for each in one.objects
        for finding in check(each, one.world)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("overlay", "before", "after", "found"),
    [
        ("gpu", "\n  max_gpus: 4", "", "needs 2 GPUs at the start, the least replicas have 0"),
        ("gpu", "max_gpus: 4", "max_gpus: 5", "runtime.max_gpus=5, and at most 4 can be there"),
        ("queue", "actors: 2", "max_cpus: 99", "runtime.max_cpus=99, and at most 10 can be there"),
    ],
)
def test_a_driver_waits_for_what_the_groups_can_bring_only(
    rendered: dict[str, Rendering], overlay: str, before: str, after: str, found: str
) -> None:
    one = rendered[f"overlays/{overlay}/jobs/pipeline"]
    objects = copy.deepcopy(one.world.objects)
    data = next(each for each in objects if each["metadata"]["name"] == "ssat-run")["data"]
    assert before in data["run.yaml"]
    data["run.yaml"] = data["run.yaml"].replace(before, after)
    world = dataclasses.replace(one.world, objects=objects)
    (wrong,) = [finding for each in one.objects for finding in check(each, world)]
    assert wrong.rule == "capacity" and found in wrong.text


def test_core_objects_have_two_releases_of_kubernetes() -> None:
    found = targets({"apiVersion": "v1", "kind": "Pod"}, Path("unused"))
    assert found == [f"kubernetes {release}" for release in KUBERNETES]


def test_a_kind_without_schema_is_an_error(crd_folder: Path) -> None:
    wrong = {"apiVersion": "ray.io/v1", "kind": "RayJop", "metadata": {"name": "a"}}
    assert errors(wrong, "kuberay v1.7.0", crd_folder) == ["no-schema: ray.io/v1 RayJop"]
    wrong = {"apiVersion": "v1", "kind": "Serviec", "metadata": {"name": "a"}}
    (found,) = errors(wrong, "kubernetes 1.37", crd_folder)
    assert found.startswith("no-schema: ")


def test_strict_schemas_keep_maps_open_and_know_quantities() -> None:
    quantities = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}]}
    open_map = {"type": "object", "additionalProperties": quantities}
    found = strict({"type": "object", "properties": {"limits": open_map}})
    assert found["additionalProperties"] is False
    limits = found["properties"]["limits"]
    assert limits == {"type": "object", "additionalProperties": {"type": ["integer", "string"]}}
    kept = {"type": "object", "properties": {}, "x-kubernetes-preserve-unknown-fields": True}
    assert "additionalProperties" not in strict(kept)


@pytest.mark.parametrize(
    ("text", "value"), [("500m", 0.5), ("2", 2), ("4Gi", 4 * 2**30), ("1.5k", 1500), (3, 3)]
)
def test_quantities(text: object, value: float) -> None:
    assert quantity(text) == value


def test_a_quantity_that_is_none() -> None:
    with pytest.raises(ValueError, match="'4GB' is no resource quantity"):
        quantity("4GB")


def test_a_job_has_the_cluster_that_its_overlay_describes(rendered: dict[str, Rendering]) -> None:
    for overlay in OVERLAYS:
        cluster = next(
            cluster_of(one)
            for one in rendered[f"overlays/{overlay}/cluster"].objects
            if one["kind"] == "RayCluster"
        )
        for name in RAYJOBS:
            (job,) = rendered[f"overlays/{overlay}/jobs/{name}"].objects
            assert job["spec"]["rayClusterSpec"] == cluster


def test_the_dashboard_is_json_with_panels(rendered: dict[str, Rendering]) -> None:
    objects = rendered["overlays/queue/platform"].objects
    config = next(one for one in objects if one["metadata"]["name"] == "ssat-dashboard")
    dashboard = json.loads(config["data"]["ssat-ray.json"])
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 5
    assert all("ray_" in panel["targets"][0]["expr"] for panel in panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)


def test_every_metric_of_the_project_is_on_the_dashboard_and_in_the_guide() -> None:
    """And no other of that prefix, which would be an empty panel."""
    text = (ROOT / KUBERAY / "overlays/queue/platform/dashboard.yaml").read_text()
    dashboard = json.loads(yaml.safe_load(text)["data"]["ssat-ray.json"])
    asked = " ".join(t["expr"] for panel in dashboard["panels"] for t in panel["targets"])
    guide = (ROOT / "docs/operations.md").read_text().partition("## Metrics")[2].partition("## ")[0]
    board = (ROOT / "ssat_ray/board.py").read_text()
    served = {f"ray_{name}" for name in re.findall(r'"(ssat_\w+)"', board)}
    assert len(served) == 5
    for place in (asked, guide):
        found = re.findall(r"ray_ssat_\w+", place)
        assert {re.sub("_(bucket|sum|count)$", "", name) for name in found} == served


def test_no_secret_is_in_the_repository_and_the_guide_makes_each() -> None:
    for path in (ROOT / KUBERAY).rglob("*.yaml"):
        for one in yaml.safe_load_all(path.read_text()):
            assert one is None or one.get("kind") != "Secret", path
    assert made_by_hand()["ssat-mlflow"] == {"username", "password", "session-key"}
    assert {"ssat-registry", "ssat-object-storage"} <= set(made_by_hand())


def fenced(text: str) -> list[tuple[str, str]]:
    """Language and content of the fenced blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("key", ["pool", "data"])
def test_the_lines_for_a_file_of_ones_own_go_into_the_configuration(key: str) -> None:
    config = yaml.safe_load((ROOT / KUBERAY / "overlays/cpu/platform/run.yaml").read_text())
    (lines,) = [
        found
        for language, text in fenced(GUIDE)
        if language == "yaml" and key in (found := yaml.safe_load(text))
    ]
    found = Config.model_validate({**config, **lines})
    if key == "data":
        assert found.data.name == "npz"
        return
    imports = re.findall(r"^docker run .* ssat pool import \S+ '(\S+)'$", GUIDE, re.MULTILINE)
    assert imports == [found.pool.path]
    system, folder = Folder(imports[0]).place.opened
    assert (system.type_name, folder, system.region) == ("s3", "BUCKET/mine", "us-east-1")


def test_the_guide_needs_at_most_ten_commands_and_its_folders_exist(
    rendered: dict[str, Rendering],
) -> None:
    first, _, rest = GUIDE.partition("## From nothing")[2].partition("\n## ")
    assert len(re.findall(r"^\*\*\d+\.\*\*", first, re.MULTILINE)) <= 10
    blocks = [text for language, text in fenced(first) if not language]
    assert sum(len(block.splitlines()) for block in blocks) <= 10
    for path in re.findall(r"--kustomize cluster/kuberay/(\S+)", first + rest):
        assert path in rendered


def test_the_operator_is_where_the_guide_installs_it() -> None:
    (command,) = re.findall(r"^helm install .*$", GUIDE, re.MULTILINE)
    assert f"--namespace {OPERATOR.namespace} " in command
    assert OPERATOR.labels == {"app.kubernetes.io/name": command.split()[3]}


def test_the_image_has_two_targets_is_not_root_and_checks_hashes() -> None:
    text = (ROOT / "cluster/Dockerfile").read_text()
    stages = dict(
        re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM|\Z)", text, re.DOTALL | re.MULTILINE)
    )
    assert set(stages) == {"build", "cpu", "gpu"}
    for target in ("cpu", "gpu"):
        assert re.findall(r"^USER (\S+)", stages[target], re.MULTILINE)[-1] == "1000:1000"
    assert "--require-hashes --requirement requirements.lock" in stages["build"]
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / path).exists() for path in source.split())


def test_the_image_has_the_locked_packages_but_the_tools_of_development() -> None:
    def packages(path: str) -> dict[str, str]:
        """Package -> its entry, version and hashes."""
        entries = re.split(r"\n(?=\S)", (ROOT / path).read_text().rstrip())
        return {entry.partition("==")[0]: entry for entry in entries}

    whole, image = packages("requirements.lock"), packages("cluster/requirements.lock")
    assert image.items() <= whole.items()
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"]
    left_out = {tool.partition("[")[0] for tool in tools} - set(image)
    assert {"pytest", "hypothesis", "moto", "mypy", "ruff"} <= left_out
    assert {"torch", "ray", "mlflow", "setuptools"} <= set(image)


def test_no_file_names_a_package_registry() -> None:
    places = [
        *(ROOT / "cluster").rglob("*"),
        *(ROOT / "jobs").glob("*.py"),
        ROOT / "docs/kubernetes.md",
    ]
    for path in places:
        if path.is_file() and path.suffix != ".pyc":
            assert "index-url" not in path.read_text(), path
