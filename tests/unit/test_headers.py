"""The headers that a dead letter keeps of its message."""

import pytest

from order_service.contract.headers import copied


@pytest.mark.parametrize("name", ["CC", "BCC", b"CC\xff", b"\xffCC", b"B\xffCC"])
def test_no_header_that_routes_copies_keeps_its_name(name: str | bytes) -> None:
    # pika gives a name that is not UTF-8 as bytes
    kept, left_out = copied({name: ["order-service.payment"]})

    assert not {"CC", "BCC"} & kept.keys()
    assert list(kept.values()) == [["order-service.payment"]]
    assert not left_out
