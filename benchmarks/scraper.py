"""`python -m benchmarks.scraper PORT...`: reads /metrics of each port every few seconds, as Prometheus does."""

import contextlib
import sys
import time
import urllib.request

#: A usual interval of Prometheus, in seconds.
INTERVAL = 5.0


def main() -> None:
    while True:
        for port in sys.argv[1:]:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
                response.read()
        time.sleep(INTERVAL)


if __name__ == "__main__":
    main()
