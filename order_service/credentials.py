"""Credentials in the environment: read from variables and files, and never shown."""

import os
from pathlib import Path

#: What masked() shows of a URL's query; any other value may be a credential.
HARMLESS_OPTIONS = (
    "host=", "port=", "user=", "dbname=", "sslmode=", "sslrootcert=", "sslcert=", "target_session_attrs=",
)  # fmt: skip


def masked(url: str) -> str:
    """The URL without its credentials, for logs and messages.

    The user is shown only beside a password and not for HTTP, where it may be a token.
    """
    # The last "@", because a password may contain what ends an authority: SQLAlchemy accepts it unencoded.
    before, at, rest = url.rpartition("@")
    scheme, slashes, userinfo = before.partition("://")
    user, _, password = userinfo.partition(":")
    if at:
        before = (
            f"{scheme}{slashes}{user}:***" if password and not scheme.startswith("http") else f"{scheme}{slashes}***"
        )
    address, mark, query = rest.partition("?")
    options = "&".join(
        option if option.startswith(HARMLESS_OPTIONS) else _valueless(option) for option in query.split("&")
    )
    return f"{before}{at}{address}{mark}{options}"


def _valueless(option: str) -> str:
    name, equals, _ = option.partition("=")
    return f"{name}=***" if equals else option and "***"


def secret(name: str) -> str:
    """The value of this variable, or the text of the file that the variable with _FILE appended names.

    Raises ValueError, without the value, if there is none. One line break at the end of the file does not count.
    """
    value, path = os.environ.get(name, ""), os.environ.get(f"{name}_FILE", "")
    if value and path:
        raise ValueError(f"is set, and so is {name}_FILE: set one of them")
    if path:
        try:
            value = Path(path).read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, ValueError) as error:
            raise ValueError(f"{name}_FILE cannot be read: {type(error).__name__}") from error
    if not value:
        raise ValueError(f"must be set, or {name}_FILE must name a file that contains it")
    return value
