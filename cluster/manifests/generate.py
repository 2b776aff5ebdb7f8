"""Write the files that follow from the list of verbs: job scripts, one kustomize patch a job, one folder an overlay and job.

`python -m cluster.manifests.generate` writes them; a test compares them with what is committed.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ssat_ray.cli import STAGE_VERBS

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = Path("cluster/kuberay")
HOME = "/opt/ssat"
"""Where the image has the repository."""
CONFIG, SWEEP = "/etc/ssat/run.yaml", "/etc/ssat/sweep.yaml"
"""Where the ConfigMap `ssat-run` is mounted: the configuration of all jobs, and what `sweep` does with it."""
PRESET = "digits"
SWEEP_FILE = Path("ssat_ray/presets/sweeps/digits-grid.yaml")
SWEEP_NAME = "digits-sweep"
OVERLAYS = ("cpu", "gpu", "queue")
SCRIPTS = {
    **{verb: (verb, about) for verb, about in STAGE_VERBS.items()},
    "pipeline": ("run", "compute what is missing of a comparison or selection"),
    "sweep": ("sweep", "run the pipeline at every setting of a space"),
    "drift": ("drift", "score what was appended to the pool, and compare"),
    "doctor": ("doctor", "look at every node, and say what a configuration would lack"),
}
"""Script in `jobs/`: its verb of `ssat`, and what that does."""
RAYJOBS = (*STAGE_VERBS, "pipeline", "sweep")
"""Scripts with a RayJob; `drift` is submitted by the CronJob, `doctor` by hand."""
RUNTIME = {
    "store": "/mnt/ssat/store",
    "runs": "/mnt/ssat/runs",
    "tracking_uri": "http://ssat-mlflow:5000",
    "train_workers": 2,
    "cpus_per_worker": 1,
    "actors": 2,
}
ON_GPUS = {"gpus_per_worker": 1, "gpus_per_actor": 1.0}
IN_OVERLAY = {"cpu": {}, "gpu": {**ON_GPUS, "max_gpus": 4}, "queue": ON_GPUS}
"""What an overlay sets besides: the group of `gpu` grows from none to 4, that of `queue` is there from the start."""
NOTE = "# Written by `python -m cluster.manifests.generate`.\n"


def generated() -> dict[Path, str]:
    """Every generated file below the repository's root, and its text."""
    files = {Path("jobs") / f"{name}.py": _script(*what) for name, what in SCRIPTS.items()}
    for name in RAYJOBS:
        files[KUBERAY / "stages" / name / "kustomization.yaml"] = _patch(name)
    for overlay in OVERLAYS:
        folder = KUBERAY / "overlays" / overlay
        files[folder / "platform/run.yaml"] = _config(overlay)
        files[folder / "platform/sweep.yaml"] = _sweep()
        for name in RAYJOBS:
            files[folder / "jobs" / name / "kustomization.yaml"] = _job(name)
    return files


def _script(verb: str, about: str) -> str:
    return f'''"""`ssat {verb}` as a script for `ray job submit`: {about}."""

if __name__ == "__main__":
    from _ssat import main

    main("{verb}")
'''


def _patch(name: str) -> str:
    arguments = f"{SWEEP} --name {SWEEP_NAME}" if name == "sweep" else f"{CONFIG} --name {PRESET}"
    return f"""{NOTE}apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
patches:
  - target: {{kind: RayJob}}
    patch: |-
      - {{op: replace, path: /metadata/name, value: ssat-{name}}}
      - {{op: replace, path: /spec/entrypoint, value: python {HOME}/jobs/{name}.py {arguments}}}
"""


def _job(name: str) -> str:
    return f"""{NOTE}apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../../../../rayjob]
components: [../../settings, ../../../../stages/{name}, ../../../../as-job]
"""


def _config(overlay: str) -> str:
    preset = (resources.files("ssat_ray") / "presets" / f"{PRESET}.yaml").read_text()
    lines = [line for line in preset.splitlines() if not line.startswith("#")]
    values = {**RUNTIME, **IN_OVERLAY[overlay]}
    runtime = [f"  {key}: {value}" for key, value in values.items()]
    first = f"# The preset `{PRESET}`, and the places and numbers of this overlay."
    return "\n".join([NOTE.rstrip(), first, *lines, "runtime:", *runtime, ""])


def _sweep() -> str:
    """The repository's sweep file, over the configuration beside it."""
    lines = (ROOT / SWEEP_FILE).read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("#", "preset:"))]
    return "\n".join([NOTE.rstrip(), "preset: run.yaml", *kept, ""])


def main() -> None:
    """Write all files. A folder of a job that is no more is removed by hand; a test finds it."""
    files = generated()
    for path, text in files.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text)
    print(f"{len(files)} files written")


if __name__ == "__main__":
    main()
