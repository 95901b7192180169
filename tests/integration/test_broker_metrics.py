"""RabbitMQ's own metrics, as deploy/prometheus/prometheus.yml scrapes them: every one that alerts and panels name."""

import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import pytest
import yaml

from order_service.config import Settings
from order_service.contract import topology
from sandbox.servers import ports, rabbitmq_node
from tests.dashboards import ROOT, named
from tests.polling import wait_until

pytestmark = pytest.mark.skipif(rabbitmq_node.script() is None, reason="needs rabbitmq-server (apt-get install)")
PLUGINS = tuple(re.findall("rabbitmq_prometheus", (ROOT / "deploy" / "rabbitmq" / "enabled_plugins").read_text()))


def scraper(port: int) -> Callable[[], str]:
    """Reads what each job of prometheus.yml about RabbitMQ reads."""
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    jobs = [job for job in config["scrape_configs"] if job["job_name"].startswith("rabbitmq")]
    urls = [
        f"http://127.0.0.1:{port}{job.get('metrics_path', '/metrics')}?{urlencode(job.get('params', {}), doseq=True)}"
        for job in jobs
    ]

    def scrape() -> str:
        answers = []
        for url in urls:
            with urllib.request.urlopen(url, timeout=20) as answer:
                answers.append(answer.read().decode())
        return "".join(answers)

    return scrape


def test_every_metric_of_rabbitmq_that_is_asked_for_is_exported_for_each_queue(tmp_path: Path) -> None:
    node_ports, [port] = rabbitmq_node.free_ports(), ports.free_ports(0)
    configuration = f"prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {port}\n"
    with rabbitmq_node.running(tmp_path / "node", node_ports, keep=False, configuration=configuration, plugins=PLUGINS):
        settings = Settings(rabbitmq_url=f"amqp://127.0.0.1:{node_ports.amqp}/")
        with topology.connected(settings, role="test") as (connection, _):
            topology.declare(connection.channel())
        scrape = scraper(port)
        queues = {name for queue in topology.QUEUES for name in (queue.name, queue.dead_letters)}

        def all_queues() -> str | None:
            text = scrape()
            return text if all(f'queue="{name}"' in text for name in queues) else None

        exported = wait_until(all_queues, "the figures of the queues")

    for metric, labels in named("rabbitmq_").items():
        series = re.findall(rf"^{metric}(\{{.*\}})? \S+$", exported, re.MULTILINE)
        assert series, metric
        assert all(f'{label}="' in each for label in labels - {"job"} for each in series), metric
        if metric.startswith("rabbitmq_detailed_queue_"):
            assert {name for name in queues if not any(f'queue="{name}"' in each for each in series)} == set(), metric
