"""The relay: outbox rows -> confirmed publishes -> rows deleted.

A row is deleted only after its confirm, so a crash at any point causes a repeat under the same id, never a loss.
https://www.rabbitmq.com/docs/confirms#publisher-confirms
"""

from collections.abc import Callable

import pika
import structlog

from order_service import vendor
from order_service.config import Settings
from order_service.contract import topology
from order_service.ops import Loop
from order_service.process import StopFlag, supervise
from order_service.storage.database import Database
from publishers.pipeline import POLL_SECONDS, Memory, Pipeline

log = structlog.get_logger(__name__)


class Relay:
    """Publishes the outbox until stopped, in the thread that calls `run`."""

    def __init__(self, settings: Settings, database: Database, stop: StopFlag) -> None:
        """`database` needs a pool of MOST_BATCHES + 1 connections: waiting for one would block the loop."""
        self._settings, self._database, self._stop = settings, database, stop
        self._memory = Memory()
        self.loop = Loop("relay", missing="relay: not connected to the broker")
        vendor.tolerate_unusual_headers()

    def run(self) -> None:
        """Return once stopped and the rows in flight are settled. Exits with 2 if the topology is not declared."""
        self._wait_for_role()
        supervise(self._run_pipeline, self._stop, what="the broker", unreachable=topology.UNREACHABLE, restart=True)

    def _run_pipeline(self, working: Callable[[], None]) -> None:
        with self.loop.session():
            # Only a confirm proves that publishing works: the broker accepts connections even if a queue has no leader.
            Pipeline(
                self._reachable_node(),
                self._database,
                self._stop,
                self._memory,
                loop=self.loop,
                on_first_confirm=working,
            ).run()

    def _wait_for_role(self) -> None:
        if not self._database.acquire_relay_role():
            log.info("another relay uses this SQLite database, waiting")
            with self.loop.session():
                self.loop.missing = ""
                while not self._stop.wait(POLL_SECONDS) and not self._database.acquire_relay_role():
                    self.loop.turn()

    def _reachable_node(self) -> pika.URLParameters:
        """A node of the broker that is reachable and has the topology."""
        with topology.connected(self._settings, role="relay") as (connection, node):
            topology.require(connection.channel())
        # The pipeline waits for the end of an alarm, however long it lasts.
        node.blocked_connection_timeout = None
        return node
