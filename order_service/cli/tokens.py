"""The command that signs an access token with a development key, for trials."""

import re
import time
from pathlib import Path

import click
import jwt
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from order_service import process

#: What `make run AUTH=jwt` creates, and the issuer that it sets.
KEY_FILE, ISSUER = Path("var/development-key.pem"), "development"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class _Duration(click.ParamType[int]):
    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch("([1-9][0-9]{0,5})([smhd])", str(value))
        if not found:
            self.fail(f"{value!r} must be a number and s, m, h or d, such as 30m", param, ctx)
        return int(found[1]) * _SECONDS[found[2]]


@click.command()
@click.option("--sub", "subject", required=True, help="The user's id; for orders:all and payments, any name.")
@click.option("--scope", required=True, help="orders, orders:all or payments; several are separated by spaces.")
@click.option("--expires", type=_Duration(), default="1h", show_default=True, help="After this time it is refused.")
@click.option("--key", type=click.Path(path_type=Path), default=KEY_FILE, show_default=True, help="The private key.")
def token(subject: str, scope: str, expires: int, key: Path) -> None:
    """Print an access token for trials, signed with the key that `make run AUTH=jwt` creates.

    Its issuer and audience are ORDER_JWT_ISSUER and ORDER_JWT_AUDIENCE, as the API expects them.
    """
    settings = process.begin()
    try:
        private = load_pem_private_key(key.read_bytes(), None)
        now = int(time.time())
        claims = {
            "iss": settings.jwt_issuer or ISSUER, "aud": settings.jwt_audience, "sub": subject, "scope": scope,
            "iat": now, "exp": now + expires,
        }  # fmt: skip
        signed = jwt.encode(claims, private, "ES256", {"typ": "at+jwt"})  # type: ignore[arg-type]  # checked by it
    except FileNotFoundError:
        process.refuse(f"There is no key {key}: `make run AUTH=jwt` creates {KEY_FILE}, or name one with --key.")
    except (OSError, ValueError, TypeError, jwt.PyJWTError) as error:
        process.refuse(f"--key: {key} must have a private key for ES256 (PEM, not encrypted): {error}")
    click.echo(signed)
