"""Each workaround works, and is still needed."""

import struct
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from order_service import vendor


@pytest.fixture
def empty_metrics_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The metrics of a worker that has created its file and not yet sized it."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    path = tmp_path / "counter_1.db"
    path.touch()
    return path


def test_library_still_fails_on_an_empty_metrics_file(empty_metrics_file: Path) -> None:
    registry = CollectorRegistry()
    MultiProcessCollector(registry)

    with pytest.raises(struct.error):
        generate_latest(registry)


def test_metrics_are_read_again_until_the_file_of_a_new_worker_is_ready(empty_metrics_file: Path) -> None:
    ready = threading.Timer(vendor.METRICS_PAUSE_SECONDS * 3, empty_metrics_file.write_bytes, [bytes(8)])
    ready.start()

    assert vendor.prometheus_metrics() == b""
    ready.join()


def test_metrics_file_that_stays_unreadable_is_an_error(empty_metrics_file: Path) -> None:
    with pytest.raises(struct.error):
        vendor.prometheus_metrics()
