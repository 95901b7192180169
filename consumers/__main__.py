"""`python -m consumers`: one consumer process; any number may run at once."""

from consumers.menu_http.client import Menus
from consumers.menu_http.consumer import MenuHttpConsumer
from consumers.worker import Worker
from order_service import ops, process
from order_service.contract import tls, topology
from order_service.storage.database import Database
from order_service.storage.schema import wait_for_database


def main() -> None:
    settings = process.begin()
    tls.require_usable_files(settings)
    stop = process.stop_on_signal()
    database = Database(settings.database_url, pool_size=3, pre_ping=False, role="consumer")
    workers = [Worker(settings, database, topology.QUEUES, stop)]
    if settings.menu_service_url:
        # A thread and a connection of its own, so that a slow Menu Service delays no other message.
        workers.append(MenuHttpConsumer(settings, database, Menus(str(settings.menu_service_url)), stop))
    process.tune_garbage_collection()
    ops.serve(settings, lambda: [worker.loop for worker in workers])
    wait_for_database(database, stop)
    process.run_together(stop, *(worker.run for worker in workers))


if __name__ == "__main__":
    main()
