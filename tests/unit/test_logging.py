"""The format of the log: JSON unless on a terminal, the libraries' lines and tracebacks included."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LINES = """
import logging, structlog
from order_service import process

process.configure_logging("INFO", {log_format!r})
structlog.contextvars.bind_contextvars(request_id="r1")
structlog.get_logger("ours").warning("a phrase", order_id=5, raw=b"\\xff", lone="\\ud800", much=float("inf"))
structlog.get_logger("ours").debug("too little")
logging.getLogger("pika.adapters").critical("a line of %s\\nin two", "pika")
logging.getLogger("pika.adapters").error("what supervise() logs itself")
process.log_events("fast", [(logging.INFO, "order placed", {{"order_id": 6, "reason": None}}),
                            (logging.DEBUG, "too little", {{}}), (logging.WARNING, "order changed", {{"from": "a"}})])
try:
    password = "hidden"
    raise ValueError("broken")
except ValueError:
    structlog.get_logger("ours").exception("a failure")
"""


def logged(log_format: str | None) -> str:
    command = [sys.executable, "-c", LINES.format(log_format=log_format)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stderr


@pytest.mark.parametrize("log_format", ["json", None])
def test_every_line_is_a_json_object_where_there_is_no_terminal(log_format: str | None) -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in logged(log_format).splitlines()]

    shown = [(line["logger"], line["level"], line["event"]) for line in lines]
    assert shown == [
        ("ours", "warning", "a phrase"),
        ("pika.adapters", "critical", "a line of pika\nin two"),
        ("fast", "info", "order placed"),
        ("fast", "warning", "order changed"),
        ("ours", "error", "a failure"),
    ]
    assert (lines[0]["order_id"], lines[0]["request_id"]) == (5, "r1")
    assert (lines[2]["order_id"], lines[2]["request_id"], "reason" in lines[2]) == (6, "r1", False)
    assert lines[3]["from"] == "a"
    assert all(line["timestamp"].endswith("Z") for line in lines)
    assert lines[4]["exception"].endswith("ValueError: broken")
    assert "hidden" not in lines[4]["exception"].replace('password = "hidden"', "")


def test_a_standard_error_that_is_closed_fails_nothing() -> None:
    program = """
import os
from order_service import process
process.configure_logging("INFO", "json")
os.close(2)
process.log_events("fast", [(20, "order placed", {"order_id": 6})])
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=False).returncode == 0


def test_the_console_format_has_the_same_lines() -> None:
    text = logged("console")

    assert all(phrase in text for phrase in ("a phrase", "a line of pika", "order placed", "order changed", "broken"))
    assert "too little" not in text
    assert "order_id=6" in text
