"""Why an order failed: the message for people of each reason, in Indonesian and in English."""

from collections.abc import Mapping

from order_service.domain.order import Order, amount_text
from order_service.web.problems import KINDS

#: The reasons that are also kinds of problems, because they answer the POST of the order.
REJECTIONS = ("menu_not_found", "out_of_stock", "price_changed")
#: The messages of every reason. An order expires because of the menu, or because of its payment.
MESSAGES: Mapping[str, tuple[str, str]] = {
    **{reason: (KINDS[reason].indonesian, KINDS[reason].english) for reason in REJECTIONS},
    "payment_failed": ("Pembayaran gagal.", "The payment failed."),
    "amount_mismatch": (
        "Jumlah pembayaran salah: dibayar {paid}, seharusnya {total}.",
        "The wrong amount was paid: {paid} instead of {total}.",
    ),
    "expired": ("Menu tidak menjawab tepat waktu.", "The menu did not answer in time."),
}
_OTHER = ("Pesanan gagal.", "The order has failed.")
_UNPAID = ("Pembayaran tidak diterima tepat waktu.", "No payment came in time.")


def values(order: Order) -> dict[str, object]:
    """What the messages name."""
    return {
        "menu_id": order.rejected_menu_id,
        "expected": amount_text(order.expected_total),
        "total": amount_text(order.total_price),
        "paid": amount_text(order.payments[0].amount if order.payments else None),
    }


def message(order: Order, *, english: bool) -> str:
    """The message of a failed order."""
    is_unpaid = order.reason == "expired" and order.total_price is not None
    # A newer version may have written the order with a reason of its own.
    texts = _UNPAID if is_unpaid else MESSAGES.get(order.reason or "", _OTHER)
    return texts[english].format(**values(order))
