"""What is loaded, and the settings of the clients that load it."""

from __future__ import annotations

import enum
from typing import Annotated

from msgspec import Meta, field

from common.plan.schema.base import AtLeastOne, NameOrNone, NotNegative, Section
from common.redaction import REDACTED
from common.units import Seconds


class BackoffKind(enum.Enum):
    """redis-py's backoff families."""

    NONE = "none"
    CONSTANT = "constant"
    EXPONENTIAL = "exponential"
    FULL_JITTER = "full-jitter"
    EQUAL_JITTER = "equal-jitter"
    DECORRELATED_JITTER = "decorrelated-jitter"


class RetryError(enum.Enum):
    """Errors of redis-py that a retry policy may be told to try again on, by their class."""

    CONNECTION = "ConnectionError"
    TIMEOUT = "TimeoutError"
    BUSY_LOADING = "BusyLoadingError"
    READ_ONLY = "ReadOnlyError"
    TRY_AGAIN = "TryAgainError"
    CLUSTER_DOWN = "ClusterDownError"
    MASTER_DOWN = "MasterDownError"


class Embedded(enum.Enum):
    """Servers of our own on loopback, for trying things out: one; six as a cluster, three primaries with a replica
    each; or a primary and a replica watched by three Sentinels."""

    STANDALONE = "standalone"
    CLUSTER = "cluster"
    SENTINEL = "sentinel"


class Verify(enum.Enum):
    """What is checked of the server's certificate: who signed it and for which name; who signed it; nothing."""

    FULL = "full"
    CA = "ca"
    NONE = "none"


class Maintenance(enum.Enum):
    """Maintenance notifications of redis-py: off; wanted, so that a server without them is an error; or taken where the
    server has them."""

    OFF = "off"
    ON = "on"
    AUTO = "auto"


class ReadFrom(enum.Enum):
    """Where a cluster client sends commands that only read: to the primary of the slot; to its nodes in turn; to its
    replicas in turn; to any of them by chance; to any replica by chance."""

    PRIMARY = "primary"
    ANY = "any"
    REPLICAS = "replicas"
    RANDOM = "random"
    RANDOM_REPLICA = "random-replica"


class Retry(Section, frozen=True, kw_only=True):
    """redis-py's retry policy, always passed explicitly. `retries` 0 means that nothing is tried again."""

    retries: NotNegative = 3
    backoff: BackoffKind = BackoffKind.FULL_JITTER
    base_s: Seconds = field(default=Seconds(0.008), name="base")
    cap_s: Seconds = field(default=Seconds(0.512), name="cap")
    errors: Annotated[tuple[RetryError, ...], Meta(min_length=1)] = (RetryError.CONNECTION, RetryError.TIMEOUT)


class Keepalive(Section, frozen=True, kw_only=True):
    """TCP keepalive: first probe after `idle` without traffic, then one each `interval`, `count` of them in vain end
    the connection. Whole seconds, because the sockets' options are."""

    enabled: bool = True
    idle_s: Seconds = field(default=Seconds(30), name="idle")
    interval_s: Seconds = field(default=Seconds(5), name="interval")
    count: AtLeastOne = 3


class Tls(Section, frozen=True, kw_only=True):
    """TLS of `rediss` URLs. Files are PEM, and must be on every machine that connects. ca_file unset: the machine's own
    authorities. server_name: asked for (SNI) and expected in the certificate, instead of the URL's host."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    verify: Verify = Verify.FULL


class Sentinel(Section, frozen=True, kw_only=True):
    """Who we are to the Sentinels, which have users and passwords of their own."""

    username: str | None = None
    password: str | None = None
    password_env: str | None = None
    password_file: str | None = None

    def __repr__(self) -> str:
        """Never shows the password."""
        return f"Sentinel(username={self.username!r}, password={REDACTED if self.password else None!r})"


class Cluster(Section, frozen=True, kw_only=True):
    """redis-py's cluster client. reinitialize_steps: redirections after which the whole topology is read anew; 0 for
    never. require_full_coverage: refuse a cluster that does not serve every slot. dynamic_startup_nodes: the nodes
    found take the place of those of the URL."""

    read_from: ReadFrom = ReadFrom.PRIMARY
    reinitialize_steps: NotNegative = 5
    require_full_coverage: bool = False
    dynamic_startup_nodes: bool = True


class Target(Section, frozen=True, kw_only=True):
    """What is loaded. `url` never holds a password once the plan is resolved: that is in `password`.

    client_name: "" or null sends no CLIENT command, for proxies without it.
    address_remap: announced address -> address at which clients reach that server, each `host:port` or `host`; for
    clusters and Sentinels behind NAT, which announce addresses that clients cannot use.
    health_check_interval: a connection idle for longer is asked with PING before it is used; 0 for never.
    """

    url: str = ""
    embedded: Embedded | None = None
    username: str | None = None
    password: str | None = None
    password_env: str | None = None
    password_file: str | None = None
    address_remap: dict[str, str] = field(default_factory=dict)
    protocol: Annotated[int, Meta(ge=2, le=3)] = 3
    client_name: NameOrNone | None = "stampede"
    connect_timeout_s: Seconds = field(default=Seconds(5.0), name="connect_timeout")
    socket_timeout_s: Seconds = field(default=Seconds(5.0), name="socket_timeout")
    health_check_interval_s: Seconds = field(default=Seconds(0.0), name="health_check_interval")
    maintenance: Maintenance = Maintenance.OFF
    retry: Retry = Retry()
    keepalive: Keepalive = Keepalive()
    tls: Tls = Tls()
    sentinel: Sentinel = Sentinel()
    cluster: Cluster = Cluster()

    def __repr__(self) -> str:
        """Never shows the password: plans end up in logs."""
        return f"Target(url={self.url!r}, username={self.username!r}, password={REDACTED if self.password else None!r})"
