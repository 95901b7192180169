"""`python -m consumers`: one consumer process; run as many as you like."""

from consumers.menu_http.client import Menus
from consumers.menu_http.consumer import MenuOverHttp
from consumers.worker import Worker
from order_service import process as startup
from order_service.contract import topology
from order_service.storage.database import Database


def main() -> None:
    settings = startup.begin()
    stop = startup.stop_on_signal()
    database = Database(settings.database_url, pool_size=3, ask_first=False)
    startup.wait_for_database(database, stop.wait, stop.is_set)
    workers = [Worker(settings, database, topology.QUEUES, stop)]
    if settings.menu_service_url:
        # A thread and a connection of its own: a slow Menu Service holds nobody else up.
        workers.append(MenuOverHttp(settings, database, Menus(str(settings.menu_service_url)), stop))
    startup.run_together(stop, *(worker.run for worker in workers))


if __name__ == "__main__":
    main()
