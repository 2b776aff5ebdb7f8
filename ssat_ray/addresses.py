"""Addresses in settings: they enter digests, records, MLflow and logs, so they hold no secrets."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit


def without_password(address: str | None) -> str | None:
    """The address of a server or a location, as it is given.

    Raises:
        ValueError: it has a password in it, or an address with one in its query (`?endpoint_override=`); the message
            does not repeat it.
    """
    if address is not None and "://" in address:
        parts = urlsplit(address)
        if parts.password is not None:
            raise ValueError(
                f"{parts.scheme}://…@{parts.hostname} has a password in it, which would enter records and logs; "
                "give it to the nodes' environment instead (MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
            )
        for _, value in parse_qsl(parts.query):
            without_password(value)
    return address
