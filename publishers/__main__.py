"""`python -m publishers`: one relay and one deadline thread; any number may run at once."""

from prometheus_client import REGISTRY

from order_service import ops, process
from order_service.contract import tls
from order_service.storage.database import Database
from order_service.storage.schema import wait_for_database
from publishers import gauges
from publishers.deadlines import Deadlines
from publishers.pipeline import MOST_BATCHES
from publishers.relay import Relay


def main() -> None:
    settings = process.begin()
    tls.require_usable_files(settings)
    stop = process.stop_on_signal()
    database = Database(settings.database_url, pool_size=2, pre_ping=False, role="deadlines")
    # A deletion that a power cut undoes only repeats a message under its id, so the relay does not wait for the disk.
    relay_database = Database(
        settings.database_url, pool_size=MOST_BATCHES + 1, pre_ping=False, durable=False, role="relay"
    )
    relay, deadlines = Relay(settings, relay_database, stop), Deadlines(settings, database, stop)
    process.tune_garbage_collection()
    if ops.serve(settings, lambda: [relay.loop, deadlines.loop]):
        figures = Database(settings.database_url, pool_size=1, role="metrics")
        REGISTRY.register(gauges.of_database(figures, settings.compensation_attempts))
        if settings.management_url:
            REGISTRY.register(gauges.of_broker(settings))
    wait_for_database(database, stop)
    process.run_together(stop, relay.run, deadlines.run)


if __name__ == "__main__":
    main()
