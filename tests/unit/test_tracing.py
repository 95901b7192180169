"""OpenTelemetry is imported only where it is wanted and installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
START = """
import sys
{before}
from order_service import process, tracing
process.begin()
print(tracing.is_on(), any(name.startswith("opentelemetry.") and sys.modules[name] for name in sys.modules))
"""
MISSING = 'sys.modules["opentelemetry"] = None'
INSTRUMENTED = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
trace.set_tracer_provider(TracerProvider())
"""
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("before", "env", "printed", "is_warned"),
    [
        ("", {}, "False False", False),
        ("", ENDPOINT, "True True", False),
        (MISSING, ENDPOINT, "False False", True),
        (INSTRUMENTED, {}, "True True", False),
        ("import opentelemetry.sdk.trace", {}, "False True", False),
    ],
    ids=["not wanted", "wanted", "not installed", "instrumented", "imported"],
)
def test_spans_are_recorded_where_they_are_wanted(
    before: str, env: dict[str, str], printed: str, is_warned: bool
) -> None:
    command = [sys.executable, "-c", START.format(before=before)]
    done = subprocess.run(command, env=os.environ | env, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.stdout.strip() == printed, done.stderr
    assert ("pip install -r requirements-otel.txt" in done.stderr) == is_warned


@pytest.mark.parametrize("name", ["OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_SPAN_EVENT_COUNT_LIMIT"])
def test_a_variable_of_opentelemetry_that_cannot_be_used_is_named(name: str) -> None:
    command = [sys.executable, "-c", START.format(before="")]
    env = os.environ | ENDPOINT | {name: "-1" if name.endswith("LIMIT") else "999999"}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert done.stderr.startswith("OTEL_*: ")
