"""The alerts of deploy/prometheus/alerts.yml, on series as the processes and RabbitMQ's plugin export them.

Which fault is which alert:

| fault | alert | from |
| --- | --- | --- |
| broker down | BrokerNotAnswering, BrokerUnusable, later OutboxOld, RelayNotConfirming | scrape, readiness, outbox |
| broker refuses the login | BrokerUnusable, later OutboxOld, RelayNotConfirming | readiness, outbox |
| broker refuses messages | BrokerBlocksPublishers, MessagesNotAccepted, later OutboxOld, RelayNotConfirming | plugin, outcomes |
| menu silent | MenuSilent, OrdersExpiring; without a consumer SiblingWithoutConsumer | pending orders, replies, plugin |
| payment silent | PaymentSilent, OrdersExpiring; without a consumer SiblingWithoutConsumer | pending orders, replies, plugin |
| poison message | DeadLetters | counter of dead letters |
| queue deleted | QueueMissing, BrokerUnusable | plugin, readiness |
| drifted queue arguments | QueueDrifted; BrokerDropsMessages, by what they do | arguments at the management API, plugin |
| database locked | DatabaseUnusable (SQLite); QueueNotConsumed, OutboxOld, RequestsFailing (a table of PostgreSQL) | readiness |
| database read-only | DatabaseUnusable, RequestsFailing | readiness, statuses |
| consumers stopped (SIGSTOP) | ProcessNotAnswering, QueueNotConsumed | scrape, plugin |
| relay stopped | ProcessNotAnswering; a relay that hangs: LoopStalled, OutboxOld, RelayNotConfirming | scrape, loops, outbox |
| clock off | ClocksApart | difference to the database's clock |

All names begin with OrderService.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from order_service.cli.main import main
from order_service.contract import topology
from order_service.metrics import METRICS
from tests.dashboards import ROOT, RULES, alerts, named, panels

NEEDS_PROMTOOL = pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool (apt-get install prometheus)")
#: Minutes of an undisturbed service before the fault, and when a test ends.
BEFORE, END = 20, 45
STEP_SECONDS = 15
RUNBOOK = "docs/runbook.md"
PLUGIN = "rabbitmq_detailed_queue_"


def level(value: float) -> str:
    """A value of a gauge for the length of a test."""
    return f"{value}x{(END + 5) * 4}"


def rising(per_scrape: float) -> str:
    """A counter that rises by this at each scrape."""
    return f"0+{per_scrape}x{(END + 5) * 4}"


def scrape(process: str) -> str:
    return f'job="order-service", process="{process}", instance="{process}:9100"'


def _healthy() -> Iterator[tuple[str, str]]:
    """A service in use."""
    for process in ("api", "consumers", "publishers"):
        yield f"up{{{scrape(process)}}}", level(1)
        yield f"order_service_loop_stalled_seconds{{{scrape(process)}}}", level(0.2)
        yield from (
            (f'order_service_ready{{part="{part}", {scrape(process)}}}', level(1)) for part in ("database", "loops")
        )
    yield f'http_requests_total{{method="POST", route="/orders", status="201", {scrape("api")}}}', rising(30)
    yield f'http_requests_total{{method="POST", route="/orders", status="503", {scrape("api")}}}', level(2)
    publishers, consumers = scrape("publishers"), scrape("consumers")
    for state, count in (("awaiting_menu", 4), ("awaiting_menu_prepaid", 0), ("awaiting_payment", 40)):
        yield f'order_service_orders_pending{{state="{state}", {publishers}}}', level(count)
    for name, value in (
        ("oldest_pending_seconds", 870), ("outbox_rows", 3), ("outbox_oldest_seconds", 0.3),
        ("compensations_unconfirmed", 0), ("clock_offset_seconds", 0.02),
    ):  # fmt: skip
        yield f"order_service_{name}{{{publishers}}}", level(value)
    for each in (each for queue in topology.QUEUES for each in queue.declarations):
        yield f'order_service_queues_drifted{{queue="{each.name}", {publishers}}}', level(0)
    yield f'order_service_published_total{{type="OrderCreated", outcome="accepted", {publishers}}}', rising(30)
    yield f'order_service_orders_total{{status="failed", reason="expired", {publishers}}}', level(7)
    for message in ("MenuReserved", "PaymentCompleted"):
        yield f'order_service_consumed_total{{type="{message}", outcome="applied", {consumers}}}', rising(30)
    yield f'order_service_dead_letters_total{{queue="order-service.menu", error="malformed", {consumers}}}', level(3)
    for job in ("rabbitmq", "rabbitmq-queues"):
        yield f'up{{job="{job}", instance="rabbitmq:15692"}}', level(1)
    for alarm in ("memory_used", "free_disk_space"):
        yield f'rabbitmq_alarms_{alarm}_watermark{{job="rabbitmq"}}', level(0)
    for reason in ("delivery_limit", "expired", "maxlen"):
        labels = 'queue_type="rabbit_quorum_queue", dead_letter_strategy="disabled"'
        yield f"rabbitmq_global_messages_dead_lettered_{reason}_total{{{labels}}}", level(0)
    for queue in topology.QUEUES:
        yield from _queue(queue.name, messages=12, consumers=1)
        yield from _queue(queue.dead_letters, messages=3, consumers=0)
    for name in ("menu-service.orders", "payment-service.orders"):
        yield from _queue(name, messages=20, consumers=2)


def _queue(name: str, *, messages: int, consumers: int) -> Iterator[tuple[str, str]]:
    labels = f'{{vhost="/", queue="{name}", job="rabbitmq-queues", instance="rabbitmq:15692"}}'
    yield f"{PLUGIN}messages{labels}", level(messages)
    yield f"{PLUGIN}consumers{labels}", level(consumers)


HEALTHY = dict(_healthy())


@dataclass(frozen=True)
class Fault:
    """What happens after 20 minutes: the series that change, and the alerts that fire some minutes later.

    A series is found by the texts that it contains; its new values begin at that moment. None: it ends.
    """

    changes: dict[str, str | None]
    fires: set[str]
    minutes: int = 5
    #: Series that are not there before.
    new: dict[str, str] = field(default_factory=dict)

    def series(self) -> dict[str, str]:
        steps = BEFORE * 60 // STEP_SECONDS
        found = dict(HEALTHY)
        for texts, after in self.changes.items():
            matching = [name for name in HEALTHY if all(text in name for text in texts.split("|"))]
            assert matching, texts
            for name in matching:
                start, _, by = HEALTHY[name].partition("x")[0].partition("+")
                before = f"{start}+{by}x{steps}" if by else f"{start}x{steps}"
                last = float(start) + float(by or 0) * (steps + 1)
                found[name] = f"{before} {(after or 'stale').replace('LAST', f'{last:g}')}"
        return found | {name: f"_x{steps + 1} {values}" for name, values in self.new.items()}


def gone(*texts: str) -> dict[str, str | None]:
    return dict.fromkeys(texts)


#: The values of a counter that rises no more.
STILL = "LASTx200"
NO_LONGER_SCRAPED = {"up{|rabbitmq": "0x200", **gone(PLUGIN, "rabbitmq_alarms", "rabbitmq_global")}
NOTHING_PUBLISHED = {
    "published_total": STILL, "outbox_rows": "10+30x200", "outbox_oldest": "15+15x200", "consumed_total": STILL,
    PLUGIN + 'messages{|order-service.menu"': "0x200", PLUGIN + 'messages{|order-service.payment"': "0x200",
}  # fmt: skip
OUTBOX = {"OutboxOld", "RelayNotConfirming", "OutboxGrowing"}
#: The faults, and the alerts of each 5 minutes later, or as many as stated: all of them, and no others.
FAULTS = {
    "broker down": Fault(
        NO_LONGER_SCRAPED | NOTHING_PUBLISHED
        | {'ready{part="loops"|consumers': "0x200", 'ready{part="loops"|publishers': "0x200"},
        {"BrokerNotAnswering", "BrokerUnusable", "MenuSilent", *OUTBOX}, minutes=9,
    ),
    "broker refuses the login": Fault(
        NOTHING_PUBLISHED | {
            'ready{part="loops"|consumers': "0x200", 'ready{part="loops"|publishers': "0x200",
            PLUGIN + "consumers|order-service": "0x200",
        },
        {"BrokerUnusable", "QueueWithoutConsumer", "MenuSilent", *OUTBOX}, minutes=9,
    ),
    "broker out of memory": Fault(
        NOTHING_PUBLISHED | {"memory_used": "1x200"}, {"BrokerBlocksPublishers", "MenuSilent", *OUTBOX}, minutes=9,
    ),
    "broker refuses one kind of message": Fault(
        {"outbox_oldest": "15+15x200"}, {"MessagesNotAccepted", "OutboxOld"},
        new={f'order_service_published_total{{type="PaymentRequested", outcome="refused", {scrape("publishers")}}}': "1+1x200"},
    ),
    "menu without a consumer": Fault(
        {
            PLUGIN + "consumers|menu-service": "0x200", PLUGIN + "messages{|menu-service": "20+30x200",
            "consumed_total|MenuReserved": STILL, 'pending{state="awaiting_menu"': "30+30x20 600x200",
            'reason="expired"': "LASTx8 LAST+30x200",
        },
        {"SiblingWithoutConsumer", "MenuSilent", "OrdersExpiring", "QueueGrowing"}, minutes=9,
    ),
    "menu that consumes, and does not answer": Fault(
        {"consumed_total|MenuReserved": STILL, 'pending{state="awaiting_menu"': "5x200", 'reason="expired"': "LASTx8 LAST+1x200"},
        {"MenuSilent", "OrdersExpiring"}, minutes=7,
    ),
    "payment that consumes, and does not answer": Fault(
        {"consumed_total|PaymentCompleted": STILL, 'state="awaiting_payment"': "40+1x200", 'reason="expired"': "LASTx60 LAST+1x200"},
        {"PaymentSilent", "OrdersExpiring"}, minutes=18,
    ),
    "poison message": Fault({"dead_letters_total": "4x200"}, {"DeadLetters"}, minutes=1),
    "the first dead letter of a kind": Fault(
        {}, {"DeadLetters"}, minutes=1,
        new={f'order_service_dead_letters_total{{queue="order-service.payment", error="unknown_order", {scrape("consumers")}}}': "1x200"},
    ),
    "queue deleted": Fault(
        {**gone(PLUGIN + 'messages{|order-service.menu"', PLUGIN + 'consumers|order-service.menu"'),
         'ready{part="loops"|consumers': "0x200"},
        {"QueueMissing", "BrokerUnusable"}, minutes=7,
    ),
    "drifted queue arguments": Fault({'drifted{queue="order-service.menu.dlq"': "1x200"}, {"QueueDrifted"}, minutes=2),
    "queue with a drifted length limit, without the management API": Fault(
        {"maxlen": "0+5x200", **gone("queues_drifted")}, {"BrokerDropsMessages"}, minutes=1,
    ),
    "SQLite locked": Fault(
        NOTHING_PUBLISHED | {'ready{part="database"': "0x200", "outbox_rows": "3x200", 'status="503"': "2+30x200",
                             'status="201"': STILL},
        {"DatabaseUnusable", "RequestsFailing", "MenuSilent", "OutboxOld", "RelayNotConfirming"}, minutes=9,
    ),
    "a table of PostgreSQL locked": Fault(
        NOTHING_PUBLISHED | {"outbox_rows": "3x200", 'status="503"': "2+30x200", 'status="201"': STILL,
                             PLUGIN + 'messages{|order-service.menu"': "40x200"},
        {"QueueNotConsumed", "RequestsFailing", "MenuSilent", "OutboxOld", "RelayNotConfirming"}, minutes=9,
    ),
    "database read-only": Fault(
        {'ready{part="database"': "0x200", 'status="503"': "2+30x200", 'status="201"': STILL},
        {"DatabaseUnusable", "RequestsFailing"},
    ),
    "database unreachable": Fault(
        {'ready{part="database"': "0x200", 'status="503"': "2+30x200", 'status="201"': STILL,
         **gone("orders_pending", "oldest_pending", "outbox_rows", "outbox_oldest", "clock_offset", "unconfirmed")},
        {"DatabaseUnusable", "RequestsFailing"},
    ),
    "consumers stopped (SIGSTOP)": Fault(
        {"up{|consumers": "0x200", **gone("ready|consumers", "stalled|consumers", "consumed_total", "dead_letters"),
         PLUGIN + 'messages{|order-service.menu"': "12+5x200"},
        {"ProcessNotAnswering", "QueueNotConsumed", "MenuSilent"}, minutes=7,
    ),
    "consumers hang": Fault(
        {"stalled|consumers": "15+15x200", "consumed_total": STILL, PLUGIN + 'messages{|order-service.menu"': "12+5x200"},
        {"LoopStalled", "QueueNotConsumed", "MenuSilent"}, minutes=7,
    ),
    "consumers gone": Fault(
        {**gone("up{|consumers", "ready|consumers", "stalled|consumers", "consumed_total", "dead_letters"),
         PLUGIN + "consumers|order-service": "0x200", PLUGIN + 'messages{|order-service.menu"': "12+5x200"},
        {"ProcessMissing", "QueueWithoutConsumer", "QueueNotConsumed", "MenuSilent"}, minutes=7,
    ),
    "relay stopped": Fault(
        {"up{|publishers": "0x200",
         **gone("ready|publishers", "stalled|publishers", "order_service_|publishers:9100")},
        {"ProcessNotAnswering"},
    ),
    "relay hangs": Fault(
        {"stalled|publishers": "15+15x200", "published_total": STILL, "outbox_rows": "10+30x200", "outbox_oldest": "15+15x200"},
        {"LoopStalled", *OUTBOX}, minutes=9,
    ),
    "deadlines not passed": Fault({"oldest_pending": "1205+15x200"}, {"OldOrderPending"}),
    "clock off": Fault({"clock_offset": "-300x200"}, {"ClocksApart"}),
    "compensations unconfirmed": Fault({"compensations_unconfirmed": "1x200"}, {"CompensationsUnconfirmed"}),
}  # fmt: skip


def assert_firing(directory: Path, series: dict[str, str], expected: dict[int, set[str]]) -> None:
    """Have promtool say that these alerts fire at these seconds, and no others; names without their prefix."""
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": f"{STEP_SECONDS}s",
        "tests": [
            {
                "interval": f"{STEP_SECONDS}s",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": f"{seconds}s",
                        "exp_samples": [
                            {"labels": f'{{alertname="OrderService{name}"}}', "value": 1} for name in sorted(names)
                        ],
                    }
                    for seconds, names in expected.items()
                ],
            }
        ],
    }
    path = directory / "alerts.test.yml"
    path.write_text(yaml.safe_dump(test))
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@NEEDS_PROMTOOL
def test_no_alert_fires_while_all_is_well(tmp_path: Path) -> None:
    # At first every counter has just appeared.
    assert_firing(tmp_path, HEALTHY, {15: {"DeadLetters", "OrdersExpiring"}, 900: set(), END * 60: set()})


@NEEDS_PROMTOOL
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_alerted_on(tmp_path: Path, fault: str) -> None:
    at = FAULTS[fault]

    assert_firing(tmp_path, at.series(), {BEFORE * 60: set(), (BEFORE + at.minutes) * 60: at.fires})


def test_every_alert_is_tried() -> None:
    fired = {f"OrderService{name}" for fault in FAULTS.values() for name in fault.fires}

    assert fired == alerts().keys()


@NEEDS_PROMTOOL
def test_promtool_has_no_complaint() -> None:
    for arguments in (["check", "rules", RULES], ["check", "config", RULES.parent / "prometheus.yml"]):
        done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@NEEDS_PROMTOOL
def test_every_expression_of_the_dashboard_is_valid(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": target["expr"]}
        for number, target in enumerate(target for panel in panels() for target in panel["targets"])
    ]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))

    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert len(rules) > 20


def test_dashboard_has_distinct_panels_side_by_side_and_asks_the_provisioned_source() -> None:
    source = yaml.safe_load(
        (ROOT / "deploy" / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text()
    )
    places = [tuple(panel["gridPos"][key] for key in "xywh") for panel in panels()]
    cells = [(x + i, y + j) for x, y, w, h in places for i in range(w) for j in range(h)]

    assert len({panel["id"] for panel in panels()}) == len(panels())
    assert len({*cells}) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert {panel["datasource"]["uid"] for panel in panels()} == {source["datasources"][0]["uid"]}


def test_every_metric_and_label_of_a_panel_or_an_alert_is_ours_or_the_plugin_s() -> None:
    ours = {metric.name: set(metric.labels) for metric in METRICS if metric.kind != "histogram"}
    for metric in METRICS:
        if metric.kind == "histogram":
            ours |= {f"{metric.name}_{suffix}": set(metric.labels) for suffix in ("bucket", "count", "sum")}
    asked = named("order_service_") | named("http_")

    assert len(asked) > 15
    assert asked.keys() - ours.keys() == set()
    added = {"job", "process", "instance"}
    assert {name: lost for name, labels in asked.items() if (lost := labels - ours[name] - added)} == {}


def test_every_series_of_these_tests_is_named_as_it_is_exported() -> None:
    ours = {metric.name: set(metric.labels) for metric in METRICS}
    added = {name for fault in FAULTS.values() for name in fault.new}
    for series in (*HEALTHY, *added):
        name, _, labels = series.partition("{")
        if name.startswith(("order_service_", "http_")):
            found = set(re.findall(r"(\w+)=", labels)) - {"job", "process", "instance"}
            assert found == ours[name], series


def test_every_alert_has_a_severity_a_summary_and_a_section_of_the_runbook() -> None:
    sections = re.findall("^## (OrderService.*)$", (ROOT / RUNBOOK).read_text(encoding="utf-8"), re.MULTILINE)

    assert sections == list(alerts())
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert rule["annotations"]["summary"].endswith("."), name
        assert rule["annotations"]["runbook_url"] == f"{RUNBOOK}#{name.lower()}"


def test_every_command_of_the_runbook_exists() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / RUNBOOK).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = {re.sub(" +# .*", "", line) for block in blocks for line in block.splitlines()}
    ours = [line.split()[3:] for line in lines if line.startswith("python -m order_service ")]

    # With --help, a command is only looked up and its options are read.
    results = {" ".join(each): CliRunner().invoke(main, [*each, "--help"]) for each in ours}

    assert len(results) > 10
    assert {command: result.output for command, result in results.items() if result.exit_code} == {}
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    started = {name for line in lines if "up --detach" in line for name in line.split()[4:] if name.isalpha()}
    assert started <= services.keys()
