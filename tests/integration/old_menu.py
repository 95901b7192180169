"""A Menu Service like the client's original one: HTTP only, prices as floats, no way to return stock."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.serving import POLL_SECONDS


class OldMenu:
    """Serves on its own port from `start` to `stop`; tests change `dishes` and read `puts`."""

    def __init__(self) -> None:
        self.dishes: dict[int, dict[str, Any]] = {
            1: {"id": 1, "name": "Nasi Ayam Bakar", "price": 18000.0, "stock": 15},
            2: {"id": 2, "name": "Kwetiau Goreng", "price": 20000.0, "stock": 7},
        }
        #: (menu id, quantity) of every PUT received, carried out or not.
        self.puts: list[tuple[int, int]] = []
        #: Called with a PUT's menu id before it is carried out.
        self.before_put: Callable[[int], None] = lambda menu_id: None
        #: Faults by menu id: drop_before, drop_after and error_after of a PUT, or broken or unavailable, an error for each GET, or
        #: hanging, no answer to any.
        self.faults: dict[int, str] = {}
        self.is_stopping = threading.Event()
        self.port = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def stock(self) -> dict[int, int]:
        return {menu_id: dish["stock"] for menu_id, dish in self.dishes.items()}

    def start(self) -> None:
        """Serve; after `stop` on the same port again."""
        self.is_stopping.clear()
        handler = type("Handler", (_Handler,), {"menu": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=[POLL_SECONDS])
        self._thread.start()

    def stop(self) -> None:
        self.is_stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def sell(self, menu_id: int, quantity: int) -> tuple[int, dict[str, Any]]:
        with self._lock:
            dish = self.dishes.get(menu_id)
            if dish is None:
                return 404, {"message": "Menu tidak ditemukan."}
            if quantity < 1 or dish["stock"] < quantity:
                return 400, {"message": "Stok tersedia tidak mencukupi."}
            dish["stock"] -= quantity
            return 200, {"message": "Stok berhasil diperbarui.", "stock": dish["stock"]}


class _Handler(BaseHTTPRequestHandler):
    menu: OldMenu

    def do_GET(self) -> None:
        menu_id = int(self.path.split("/")[2])
        dish = self.menu.dishes.get(menu_id)
        if self.menu.faults.get(menu_id) == "hanging":
            self.menu.is_stopping.wait(30)
        elif self.menu.faults.get(menu_id) == "broken":
            self._answer(500, {"message": "Internal Server Error"})
        elif self.menu.faults.get(menu_id) == "unavailable":
            self._answer(503, {"message": "Service Unavailable"})
        else:
            self._answer(200 if dish else 404, dish or {"message": "Menu tidak ditemukan."})

    def do_PUT(self) -> None:
        menu_id = int(self.path.split("/")[2])
        body = self.rfile.read(int(self.headers["content-length"]))
        quantity = json.loads(body)["sold_quantity"]
        self.menu.puts.append((menu_id, quantity))
        self.menu.before_put(menu_id)
        fault = self.menu.faults.get(menu_id)
        if fault == "drop_before":
            self.close_connection = True
            return
        status, answer = self.menu.sell(menu_id, quantity)
        if fault == "drop_after":
            self.close_connection = True
        elif fault == "error_after":
            self._answer(500, {"message": "Internal Server Error"})
        else:
            self._answer(status, answer)

    def _answer(self, status: int, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass
