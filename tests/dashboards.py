"""What deploy/prometheus and deploy/grafana ask of Prometheus: expressions, and the metrics and labels that they name."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "order-service.json"


def alerts() -> dict[str, dict[str, Any]]:
    """The alerts by name."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> Iterator[str]:
    """The expressions of all alerts and panels."""
    yield from (rule["expr"] for rule in alerts().values())
    yield from (target["expr"] for panel in panels() for target in panel.get("targets", ()))


def named(prefix: str) -> dict[str, set[str]]:
    """The metrics with this prefix that an expression names, and the labels by which they are selected or grouped."""
    found: dict[str, set[str]] = {}
    for expression in expressions():
        for part in re.split(r"(?=\b(?:sum|max|min|count) ?(?:by|\())", expression):
            grouping = set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", part)))) - {"le"}
            for metric, selectors in re.findall(rf"\b({prefix}\w+)(\{{[^}}]*\}})?", part):
                labels = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', selectors))
                found.setdefault(metric, set()).update({*labels, *grouping})
    return found
