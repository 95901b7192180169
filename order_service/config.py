"""The settings, read once from the environment by the entry points. docs/settings.md is generated from this module."""

import os
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AnyHttpUrl, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, SettingsConfigDict

from order_service import addresses
from order_service.domain.saga import Policy

if TYPE_CHECKING:
    from limits import RateLimitItem

Seconds = Annotated[float, Field(gt=0, le=7 * 24 * 3600)]

#: Threads of an API process that neither wait nor stream.
ANSWERING_THREADS = 32
#: The longest wait for the menu, by default or at the request of a client, in seconds.
MAX_WAIT_SECONDS = 30
#: The most requests, and the longest period in seconds, of a rate limit.
MAX_RATE, MAX_RATE_SECONDS = 1_000_000, 7 * 24 * 3600
#: The most pending orders of one user, and streams of one subject, where requests need tokens and no limit is set.
DEFAULT_LIMIT = 20
#: The signatures that a public key verifies (RFC 7518, RFC 8037).
JWT_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")


class Settings(BaseSettings):
    """Every setting with its default, read from the environment variable that docs/settings.md names."""

    model_config = SettingsConfigDict(
        alias_generator=lambda name: f"ORDER_{name.upper()}",
        frozen=True,
        extra="ignore",
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    database_url: addresses.DatabaseUrl = Field("sqlite:///var/order-service.db", validation_alias="DATABASE_URL")
    """The database: sqlite:///path or postgresql://user:password@host/name. With several PostgreSQL servers,
    postgresql://user:password@/name?host=a:5432&host=b:5432&target_session_attrs=read-write uses the one that accepts
    writes."""
    rabbitmq_url: addresses.BrokerUrls = Field("amqp://guest:guest@localhost:5672/", validation_alias="RABBITMQ_URL")
    """The broker; the nodes of a cluster are separated by commas. amqps:// uses TLS 1.2 or later, and checks the
    broker's certificate and host name."""
    rabbitmq_ca_file: str | None = Field(None, validation_alias="RABBITMQ_CA_FILE")
    """For amqps://: the CA certificates (PEM) that the broker's certificate is checked against; when unset, those of
    the system."""
    rabbitmq_cert_file: str | None = Field(None, validation_alias="RABBITMQ_CERT_FILE")
    """For amqps://: the client certificate (PEM), if the broker requires one."""
    rabbitmq_key_file: str | None = Field(None, validation_alias="RABBITMQ_KEY_FILE")
    """The private key (PEM, not encrypted) of RABBITMQ_CERT_FILE; when unset, it is in that file."""
    management_url: AnyHttpUrl | None = Field(None, validation_alias="RABBITMQ_MANAGEMENT_URL")
    """The broker's management API. `explain`, `stuck` and `doctor` ask it; when unset, at port 15672 of RABBITMQ_URL,
    or with amqps:// over https at port 15671. The board and the publishers, for the metric of drifted queues, ask it
    only if this is set. Without a login in it, that of RABBITMQ_URL is used. The CAs of RABBITMQ_CA_FILE are trusted
    too."""
    user_service_url: AnyHttpUrl | None = Field(None, validation_alias="USER_SERVICE_URL")
    """The User Service; when unset, users are not checked."""
    menu_service_url: AnyHttpUrl | None = Field(None, validation_alias="MENU_SERVICE_URL")
    """A Menu Service that only speaks HTTP; when unset, the Menu Service is expected on the broker."""
    board_menu_url: AnyHttpUrl | None = None
    """The address of the dishes that the board's form offers, such as http://localhost:5002/menus: a JSON list of
    objects with id, name and price. The board has a form with ORDER_AUTH=none on a loopback address only. When unset,
    the form offers the dishes of the orders that the board shows."""
    payment_events: Literal["on", "off"] = "on"
    """off: the Payment Service only speaks HTTP. No payment or refund is requested over the broker; `python -m
    order_service compensations list` shows the payments to refund."""
    host: addresses.ListeningAddress = Field("127.0.0.1", validation_alias="HOST")
    """The IP address that the API and ORDER_OPS_PORT listen on, or localhost; :: is every IPv4 and IPv6 address."""
    port: int = Field(5003, validation_alias="PORT", ge=1, le=65535)
    """The port the API listens on."""
    ops_port: int | None = Field(None, ge=1, le=65535)
    """A second port for monitoring systems, of each API, consumer and publisher process its own: /metrics, /healthz and
    /readyz. The API's own port then has no /metrics. When unset, none."""
    hosts: addresses.HostNames = ""
    """The accepted Host names, separated by commas; when unset, localhost and HOST, or all if HOST is 0.0.0.0 or ::."""
    cors_origins: addresses.Origins = ""
    """The origins whose pages may call the API from a browser, such as https://shop.example, separated by commas;
    * allows every origin. When unset, none."""
    trusted_proxies: int = Field(0, ge=0, le=10)
    """How many proxies in front of the API are believed: the last values of X-Forwarded-For, -Proto and -Prefix.
    ORDER_HOSTS applies to the Host that the last proxy sends."""
    auth: Literal["jwt", "none"] | None = None
    """jwt: requests need an access token (docs/rest.md); none: everyone may do everything. When unset, none if HOST,
    and what gunicorn's own options bind, is a loopback address; otherwise the API does not start."""
    jwt_issuer: str = ""
    """The issuer of the tokens, exactly as in their claim `iss`; required with ORDER_AUTH=jwt."""
    jwt_audience: str = "order-service"
    """The value that the claim `aud` of a token must have or contain."""
    jwt_jwks_url: addresses.JwksUrl | None = None
    """The https address of the issuer's public keys (JWKS); http on a loopback address."""
    jwt_key_file: str = ""
    """Instead of ORDER_JWT_JWKS_URL, a file with a public key (PEM) or with several (JWKS), read at start."""
    jwt_algorithms: str = "RS256,ES256,EdDSA"
    """The accepted signature algorithms, separated by commas; never a symmetric one or none."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", validation_alias="LOG_LEVEL")
    """The minimum severity of logged lines."""
    log_format: Literal["json", "console"] | None = Field(None, validation_alias="LOG_FORMAT")
    """json: one JSON object for each line. When unset, console on a terminal, and json elsewhere."""
    otel_endpoint: AnyHttpUrl | None = Field(None, validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    """Where traces are sent over OTLP/HTTP, such as http://localhost:4318; requirements-otel.txt must be installed. The
    other variables of OpenTelemetry apply too. When unset, the trace context of a client is only passed on."""

    wait_seconds: float = Field(2, ge=0, le=MAX_WAIT_SECONDS)
    """How long POST /orders waits for the menu before it answers 202."""
    menu_reply_seconds: Seconds = 30
    """How long the menu has to answer before OrderCreated is repeated, and finally the order expires."""
    menu_reminders: int = Field(3, ge=0, le=100)
    """How many times OrderCreated is sent again."""
    payment_seconds: Seconds = 900
    """How long an order waits for its payment once priced."""
    lifetime_seconds: Seconds = 3600
    """The greatest age of a pending order: it then expires, even if another wait is longer or nothing can be sent."""
    compensation_seconds: Seconds = 30
    """The first pause before an unconfirmed release or refund is repeated; it doubles, up to 1 h."""
    compensation_attempts: int = Field(10, ge=1, le=1000)
    """After how many requests an unconfirmed release or refund is reported."""
    batch_size: int = Field(200, ge=1, le=2000)
    """How many deliveries one transaction of a consumer takes; also its prefetch."""
    api_workers: int = Field(1, ge=1, le=64)
    """The number of API processes that gunicorn runs."""
    waiters: int = Field(64, ge=0, le=1000)
    """How many POSTs of one API process may wait at once; further ones return 202 at once."""
    streams: int = Field(200, ge=0, le=5000)
    """How many event streams one API process keeps open; further ones return 503."""
    stream_seconds: Seconds = 300
    """The maximum duration of an event stream."""
    rate_limit: str = ""
    """How many POST /orders of one subject, or of one client address without tokens, are answered in a period, such as
    60/minute or 10 per 5 seconds; further ones return 429. When unset, there is no limit."""
    rate_limit_storage: addresses.RateLimitStorage = "memory"
    """Where requests are counted: memory, in which each API process counts for itself, or redis://host:6379/0, which
    all share; rediss:// uses TLS. While Redis is unreachable, there is no limit."""
    pending_limit: int | None = Field(None, ge=0, le=500)
    """How many orders of one user may be pending; further POST /orders return 429, except those with the scope
    orders:all. 0 is no limit. When unset, 20 with ORDER_AUTH=jwt, and no limit without."""
    stream_limit: int | None = Field(None, ge=0, le=5000)
    """How many event streams of one API process a subject, or a client address without tokens, keeps open; further ones
    return 429. 0 is no limit. When unset, 20 with ORDER_AUTH=jwt, and no limit without."""

    @classmethod
    def settings_customise_sources(  # type: ignore[override]  # the library passes all by name
        cls, *_: object, init_settings: InitSettingsSource, **__: object
    ) -> tuple[Any, ...]:
        """Read only the documented names; with populate_by_name the library's source reads others too.

        Kubernetes sets ORDER_PORT=tcp://10.0.0.1:5003 in every pod beside a Service called `order`.
        """
        return init_settings, cls._documented

    @classmethod
    def _documented(cls) -> dict[str, str]:
        names = (str(field.validation_alias) for field in cls.model_fields.values())
        return {name: os.environ[name] for name in names if os.environ.get(name)}

    @classmethod
    def without_api(cls) -> Self:
        """The settings of a process that is not the API: without callers and PORT, and HOST for ORDER_OPS_PORT only."""
        unread: dict[str, Any] = {"port": 5003, "auth": "none"}
        if not cls._documented().get("ORDER_OPS_PORT"):
            unread["host"] = "127.0.0.1"
        return cls(**unread)

    @property
    def address(self) -> str:
        """Host and port, as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def api_threads(self) -> int:
        """Threads of one API process: waiting and streaming requests never occupy the threads for other requests."""
        return self.streams + self.waiters + ANSWERING_THREADS

    @property
    def accepted_hosts(self) -> frozenset[str] | None:
        """The names that a Host header may have, in lower case; None means every name."""
        if self.hosts:
            return frozenset(name.strip().lower() for name in self.hosts.split(","))
        if self.host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            return None
        return frozenset({"localhost", self.host.lower()})

    @property
    def needs_tokens(self) -> bool:
        return self.auth == "jwt"

    @property
    def is_development(self) -> bool:
        """Whether everyone may do everything, and only this machine can reach the API."""
        return not self.needs_tokens and addresses.is_loopback(self.host)

    @model_validator(mode="after")
    def _is_access_decided(self) -> Self:
        """Refuse what would leave the API open by mistake. The other processes set auth=none, having no callers."""
        given = sorted(f"ORDER_{name.upper()}" for name in self.model_fields_set if name.startswith("jwt_"))
        if self.auth is None and given:
            raise ValueError(f"ORDER_AUTH: must be jwt, because {given[0]} is set, or none to accept every request")
        if self.auth is None and not addresses.is_loopback(self.host):
            raise ValueError(open_to_others("HOST is not a loopback address"))
        if self.needs_tokens and not self.jwt_issuer:
            raise ValueError("ORDER_JWT_ISSUER: is required with ORDER_AUTH=jwt: the claim `iss` of the tokens")
        if self.needs_tokens and bool(self.jwt_jwks_url) == bool(self.jwt_key_file):
            raise ValueError(
                "ORDER_JWT_JWKS_URL: with ORDER_AUTH=jwt, set either this or ORDER_JWT_KEY_FILE, and not both"
            )
        return self

    @field_validator("jwt_algorithms")
    @classmethod
    def _are_asymmetric(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",")]
        if not set(names) <= set(JWT_ALGORITHMS):
            raise ValueError(f"must be of {', '.join(JWT_ALGORITHMS)}, separated by commas")
        return ",".join(names)

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: str) -> str:
        return "WARNING" if value.upper() == "WARN" else value.upper()

    @property
    def allowed_origins(self) -> frozenset[str]:
        """The values of an Origin header that are allowed; "*" stands for every value."""
        return frozenset(self.cors_origins.split(",") if self.cors_origins else ())

    @property
    def most_pending(self) -> int:
        """The most pending orders of one user; 0 is no limit."""
        return self._limit(self.pending_limit)

    @property
    def most_own_streams(self) -> int:
        """The most event streams of one client and process; 0 is no limit."""
        return self._limit(self.stream_limit)

    def _limit(self, given: int | None) -> int:
        return (DEFAULT_LIMIT if self.needs_tokens else 0) if given is None else given

    @property
    def rate(self) -> "RateLimitItem | None":
        """The rate limit, if there is one."""
        return _rate(self.rate_limit) if self.rate_limit else None

    @field_validator("rate_limit")
    @classmethod
    def _is_rate(cls, value: str) -> str:
        if value:
            _rate(value)
        return value

    @field_validator("rabbitmq_ca_file", "rabbitmq_cert_file", "rabbitmq_key_file")
    @classmethod
    def _is_used(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and "amqps://" not in info.data.get("rabbitmq_url", "amqps://"):
            raise ValueError("is for amqps:// only, and RABBITMQ_URL begins with amqp://")
        if value and info.field_name == "rabbitmq_key_file" and not info.data.get("rabbitmq_cert_file"):
            raise ValueError("needs RABBITMQ_CERT_FILE, the certificate of this key")
        return value

    @cached_property
    def policy(self) -> Policy:
        return Policy(
            menu_reply=timedelta(seconds=self.menu_reply_seconds),
            menu_reminders=self.menu_reminders,
            payment=timedelta(seconds=self.payment_seconds),
            lifetime=timedelta(seconds=self.lifetime_seconds),
            compensation_pause=timedelta(seconds=self.compensation_seconds),
            compensation_attempts=self.compensation_attempts,
            payment_events=self.payment_events == "on",
        )


def open_to_others(why: str) -> str:
    """The problem that the API would be open to other machines without anyone having decided it."""
    return f"ORDER_AUTH: must be jwt (requests need a token) or none (everyone may do everything), because {why}"


def _rate(text: str) -> "RateLimitItem":
    """Raises ValueError for what is no rate, or several."""
    # Imported when used: it takes long, and most processes and commands do not need it.
    from limits import parse_many

    try:
        [rate] = parse_many(text)
        if not (1 <= rate.amount <= MAX_RATE and rate.get_expiry() <= MAX_RATE_SECONDS):
            raise ValueError
    except ValueError:
        message = f"must look like 60/minute or 10 per 5 seconds: 1 to {MAX_RATE} requests in at most 7 days"
        raise ValueError(message) from None
    return rate


def explain(error: ValidationError) -> str:
    """One line for each invalid environment variable."""
    lines = []
    for problem in error.errors(include_url=False):
        # Without the value, which may be a password that was set under the wrong name: this text is printed.
        message = problem["msg"].removeprefix("Value error, ")
        # A problem of several settings has no location, and its message names them.
        lines.append(": ".join([*map(str, problem["loc"][:1]), message]))
    return "\n".join(lines)
