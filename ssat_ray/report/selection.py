"""stub"""

from typing import Any


def render_selection(results: dict[str, Any]) -> str:
    return ""
