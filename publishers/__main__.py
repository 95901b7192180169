"""`python -m publishers`: one relay and one pair of eyes on the clock; run as many as you like."""

from order_service import process as startup
from order_service.storage.database import Database
from publishers.deadlines import Deadlines
from publishers.relay import BATCHES, Relay


def main() -> None:
    settings = startup.begin()
    stop = startup.stop_on_signal()
    database = Database(settings.database_url, pool_size=2, ask_first=False)
    # What the relay forgets to have sent it sends again, under the same ids: no reason to wait for a disk.
    forgetful = Database(settings.database_url, pool_size=BATCHES + 1, ask_first=False, durable=False)
    startup.wait_for_database(database, stop.wait, stop.is_set)
    relay, deadlines = Relay(settings, forgetful, stop), Deadlines(settings, database, stop)
    startup.run_together(stop, relay.run, deadlines.run)


if __name__ == "__main__":
    main()
