"""MLflow's registered models: a version for the logged classifier of one row and seed of a run."""

from __future__ import annotations

from typing import Any

from ssat_ray.errors import UserError
from ssat_ray.places import Place
from ssat_ray.store import Store
from ssat_ray.tracking import STATE, check, read_state, reason, tracking_uri


def register(
    name: str,
    folder: Place,
    report: str,
    child: str,
    *,
    uri: str | None,
    store: Store,
    description: str,
    tags: dict[str, str],
) -> int:
    """Make the classifier that a run logged a version of a registered model; returns its number.

    A classifier is registered under a name once: a second call finds the version there is.

    Args:
        name: of the registered model, which is made if it does not exist.
        folder: `runs/<name>`, whose `mlflow.json` says what was logged.
        report: digest of the run's report.
        child: the MLflow run, `<row> seed <seed>`.
        uri: `runtime.tracking_uri`.

    Raises:
        UserError: the run was not logged, the tracking store does not answer, or MLflow refuses the name.
    """
    check(uri, store)
    import mlflow

    run_id = _child(folder, report, child)
    client = mlflow.MlflowClient(tracking_uri(uri, store))
    try:
        model_id = client.get_run(run_id).outputs.model_outputs[0].model_id
        # `models:/…` would be looked up in the tracking store of the whole process
        place = client.get_logged_model(model_id).artifact_location
        version = _version(client, name, place) or client.create_model_version(
            name, place, run_id, tags, description=description, model_id=model_id
        )
    except mlflow.exceptions.MlflowException as error:
        raise UserError(f"--register {name}: MLflow refuses ({reason(error)}).") from error
    return int(version.version)


def _child(folder: Place, report: str, child: str) -> str:
    """Id of the MLflow run of one row and seed."""
    state = read_state(report, folder)
    if not state.get("finished"):
        raise UserError(
            f"--register: {folder / STATE} does not say that the run was logged to MLflow. Run its command again, "
            "which logs it, then export."
        )
    return str(state["children"][child])


def _version(client: Any, name: str, place: str) -> Any:
    """The version whose files are at this place, or None. Makes the registered model if there is none."""
    import mlflow

    try:
        client.create_registered_model(name)
    except mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = client.search_model_versions(f"name = '{name}'")
    return next((version for version in found if version.source == place), None)
