"""No credential of a URL is shown."""

import pytest

from order_service.credentials import masked


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:S3cret@host/orders", "postgresql://me:***@host/orders"),
        ("postgresql://host/orders?user=me&password=S3cret", "postgresql://host/orders?user=me&password=***"),
        (
            "postgresql://host/orders?sslpassword=S3cret&sslkey=S3cret&sslmode=verify-full&sslrootcert=/ca.pem",
            "postgresql://host/orders?sslpassword=***&sslkey=***&sslmode=verify-full&sslrootcert=/ca.pem",
        ),
        (
            "postgresql://me:S3cret@/orders?host=a:5432&host=b:5432&target_session_attrs=read-write",
            "postgresql://me:***@/orders?host=a:5432&host=b:5432&target_session_attrs=read-write",
        ),
        ("http://S3cret@host:5001/path", "http://***@host:5001/path"),
        ("http://u:S3@cret@host/", "http://***@host/"),
        ("http://S3cret:@host/", "http://***@host/"),
        ("http://host/?auth=S3cret&S3cret", "http://host/?auth=***&***"),
        ("postgresql://me:S3/cr?e#t@host/orders", "postgresql://me:***@host/orders"),
        ("postgresql://me:S3cret@/orders?host=h1:1&host=h2", "postgresql://me:***@/orders?host=h1:1&host=h2"),
        ("amqp://a:S3cret@h1,amqp://b:S3cret@h2/", "amqp://a:***@h2/"),
        ("sqlite:///var/orders.db", "sqlite:///var/orders.db"),
    ],
)
def test_no_credential_of_a_url_is_shown(url: str, shown: str) -> None:
    assert masked(url) == shown
