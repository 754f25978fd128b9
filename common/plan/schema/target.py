"""The servers under load, and the settings of the clients."""

from __future__ import annotations

import enum
from typing import Annotated, ClassVar

from msgspec import Meta, field

from common.plan.schema.address_map import parse_address_map
from common.plan.schema.base import CLIENT, TARGET, AtLeastOne, NameOrNone, NotNegative, Section, described, setting
from common.plan.schema.short_forms import listed
from common.redaction import REDACTED
from common.units import Seconds, SecondsOrOff

MAX_REPLICAS = 64


class BackoffKind(enum.Enum):
    """redis-py's backoff families."""

    NONE = "none"
    CONSTANT = "constant"
    EXPONENTIAL = "exponential"
    FULL_JITTER = "full-jitter"
    EQUAL_JITTER = "equal-jitter"
    DECORRELATED_JITTER = "decorrelated-jitter"


class RetryError(enum.Enum):
    """Errors of redis-py after which a retry policy can try again, by their class."""

    CONNECTION = "ConnectionError"
    TIMEOUT = "TimeoutError"
    BUSY_LOADING = "BusyLoadingError"
    READ_ONLY = "ReadOnlyError"
    TRY_AGAIN = "TryAgainError"
    CLUSTER_DOWN = "ClusterDownError"
    MASTER_DOWN = "MasterDownError"


class Embedded(enum.Enum):
    """Servers that the coordinator starts on loopback, for a first try: one server; a cluster of three primaries with
    a replica each; or a primary and a replica that three Sentinels watch."""

    STANDALONE = "standalone"
    CLUSTER = "cluster"
    SENTINEL = "sentinel"


class Verify(enum.Enum):
    """What is checked in the server's certificate: its signer and its name; its signer only; nothing."""

    FULL = "full"
    CA = "ca"
    NONE = "none"


class Maintenance(enum.Enum):
    """Maintenance notifications of redis-py. OFF: none. ON: a server without them is an error. AUTO: used where the
    server has them."""

    OFF = "off"
    ON = "on"
    AUTO = "auto"


class EndpointType(enum.Enum):
    """The form in which a MOVING notification names the new server: an address or a host name, for clients inside or
    outside the network; NONE: not at all. AUTO: as the URL names the server, inside for a private address."""

    AUTO = "auto"
    INTERNAL_IP = "internal-ip"
    INTERNAL_FQDN = "internal-fqdn"
    EXTERNAL_IP = "external-ip"
    EXTERNAL_FQDN = "external-fqdn"
    NONE = "none"


class ReadFrom(enum.Enum):
    """Which servers get commands that only read: the primary (in a cluster, that of the slot); the primary and its
    replicas in turn; the replicas in turn; any of them at random; any replica at random."""

    PRIMARY = "primary"
    ANY = "any"
    REPLICAS = "replicas"
    RANDOM = "random"
    RANDOM_REPLICA = "random-replica"


class Retry(Section, frozen=True, kw_only=True):
    """redis-py's retry policy, always passed explicitly."""

    heading: ClassVar[str] = CLIENT

    retries: Annotated[NotNegative, setting("--retries", help="how often a failed call is repeated; 0 for never")] = 3
    backoff: Annotated[
        BackoffKind, setting("--retry-backoff", metavar="KIND", help="growth of the wait between retries: {choices}")
    ] = BackoffKind.FULL_JITTER
    base_s: Annotated[Seconds, setting("--retry-base", help="first backoff")] = field(
        default=Seconds(0.008), name="base"
    )
    cap_s: Annotated[Seconds, setting("--retry-cap", help="longest backoff")] = field(
        default=Seconds(0.512), name="cap"
    )
    errors: Annotated[
        tuple[RetryError, ...],
        Meta(min_length=1),
        setting("--retry-on", metavar="ERROR,...", parse=listed, help="errors of redis-py after which to retry"),
    ] = (RetryError.CONNECTION, RetryError.TIMEOUT)


class Keepalive(Section, frozen=True, kw_only=True):
    """TCP keepalive. Times are whole seconds, as the socket options are."""

    heading: ClassVar[str] = CLIENT

    enabled: Annotated[bool, setting("--keepalive", help="TCP keepalive")] = True
    idle_s: Annotated[Seconds, setting("--keepalive-idle", help="silence before the first keepalive probe")] = field(
        default=Seconds(30), name="idle"
    )
    interval_s: Annotated[Seconds, setting("--keepalive-interval", help="time between two probes")] = field(
        default=Seconds(5), name="interval"
    )
    count: Annotated[
        AtLeastOne, setting("--keepalive-count", help="unanswered probes after which the connection is closed")
    ] = 3


class Tls(Section, frozen=True, kw_only=True):
    """TLS of `rediss` URLs. Files are PEM, and must exist on every machine that connects."""

    heading: ClassVar[str] = TARGET

    ca_file: Annotated[
        str | None,
        setting(
            "--tls-ca-file", metavar="FILE", help="PEM file of the authorities to trust, instead of the machine's own"
        ),
    ] = None
    cert_file: Annotated[
        str | None, setting("--tls-cert-file", metavar="FILE", help="PEM file of the client certificate")
    ] = None
    key_file: Annotated[
        str | None,
        setting("--tls-key-file", metavar="FILE", help="PEM file of the certificate's key, if it is a separate file"),
    ] = None
    server_name: Annotated[
        str | None,
        setting(
            "--tls-server-name",
            metavar="NAME",
            help="name to ask for (SNI) and to expect in the server's certificate, instead of the URL's host",
        ),
    ] = None
    verify: Annotated[
        Verify,
        setting("--tls-verify", help="what to check of the server's certificate: signer and name, signer, or nothing"),
    ] = Verify.FULL


class Sentinel(Section, frozen=True, kw_only=True):
    """User and password for the Sentinels. They are independent of the servers' user and password."""

    heading: ClassVar[str] = TARGET

    username: Annotated[
        str | None, setting("--sentinel-username", metavar="NAME", help="ACL user of the Sentinels")
    ] = None
    password: Annotated[
        str | None, setting(variable="STAMPEDE_SENTINEL_PASSWORD", help="the Sentinels' password; there is no flag")
    ] = None
    password_env: Annotated[
        str | None,
        setting("--sentinel-password-env", metavar="NAME", help="environment variable with the Sentinels' password"),
    ] = None
    password_file: Annotated[
        str | None,
        setting("--sentinel-password-file", metavar="FILE", help="file with the Sentinels' password"),
    ] = None

    def __repr__(self) -> str:
        """Never shows the password."""
        return f"Sentinel(username={self.username!r}, password={REDACTED if self.password else None!r})"


class Cluster(Section, frozen=True, kw_only=True):
    """Settings of redis-py's cluster client."""

    heading: ClassVar[str] = CLIENT

    read_from: Annotated[
        ReadFrom,
        setting("--read-from", help="servers that answer reads: in a cluster, behind Sentinels, or with --replicas"),
    ] = ReadFrom.PRIMARY
    reinitialize_steps: Annotated[
        NotNegative,
        setting(
            "--reinitialize-steps", help="redirections after which a cluster's topology is read again; 0 for never"
        ),
    ] = 5
    require_full_coverage: Annotated[
        bool,
        setting("--require-full-coverage", is_switch=True, help="refuse a cluster that does not serve every slot"),
    ] = False
    dynamic_startup_nodes: Annotated[
        bool, setting("--dynamic-startup-nodes", help="forget the URL's nodes of a cluster once others are known")
    ] = True


class Target(Section, frozen=True, kw_only=True):
    """The servers under load. In a resolved plan, the password is in `password` and not in `url`."""

    heading: ClassVar[str] = TARGET

    url: Annotated[
        str,
        setting(
            "--url", "-u", metavar="URL", help="redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
        ),
    ] = ""
    embedded: Annotated[
        Embedded | None,
        setting(
            "--embedded-server",
            implied_value="standalone",
            help="start Valkey servers on loopback for this run and load them",
        ),
    ] = None
    replicas: Annotated[
        tuple[str, ...],
        Meta(max_length=MAX_REPLICAS),
        setting(
            "--replicas",
            metavar="HOST:PORT,...",
            parse=listed,
            help="replicas of a standalone server; --read-from sends reads there",
        ),
    ] = ()
    username: Annotated[str | None, setting("--username", metavar="NAME", help="ACL user")] = None
    password: Annotated[
        str | None, setting(variable="STAMPEDE_PASSWORD", help="the password itself; there is no flag")
    ] = None
    password_env: Annotated[
        str | None, setting("--password-env", metavar="NAME", help="environment variable with the password")
    ] = None
    password_file: Annotated[
        str | None, setting("--password-file", metavar="FILE", help="file with the password, on one line")
    ] = None
    address_remap: Annotated[
        dict[str, str],
        setting(
            "--address-remap",
            metavar="FROM=TO",
            repeatable=True,
            parse=parse_address_map,
            help="reach the server that a cluster or Sentinel announces as FROM at TO, for servers behind NAT; each "
            "HOST:PORT or HOST; may be repeated",
        ),
    ] = field(default_factory=dict)
    protocol: Annotated[
        int,
        Meta(ge=2, le=3),
        setting(
            "--protocol", heading=CLIENT, metavar="2|3", help="RESP version; 2 for servers and proxies without HELLO"
        ),
    ] = 3
    client_name: Annotated[
        NameOrNone | None,
        setting(
            "--client-name",
            heading=CLIENT,
            metavar="NAME",
            allows_empty=True,
            help='name that CLIENT LIST shows; "" sends no CLIENT command, for proxies without it',
        ),
    ] = "stampede"
    connect_timeout_s: Annotated[
        Seconds, setting("--connect-timeout", heading=CLIENT, help="longest wait for a TCP connection")
    ] = field(default=Seconds(5.0), name="connect_timeout")
    socket_timeout_s: Annotated[
        Seconds, setting("--socket-timeout", heading=CLIENT, help="longest wait for a reply")
    ] = field(default=Seconds(5.0), name="socket_timeout")
    health_check_interval_s: Annotated[
        Seconds,
        setting(
            "--health-check-interval",
            heading=CLIENT,
            help="PING a connection before use if it was idle for longer; 0 for never",
        ),
    ] = field(default=Seconds(0.0), name="health_check_interval")
    maintenance: Annotated[
        Maintenance,
        setting(
            "--maintenance",
            heading=CLIENT,
            help="maintenance notifications: none, required, or where the server has them",
        ),
    ] = Maintenance.OFF
    relaxed_timeout_s: Annotated[
        Seconds,
        setting(
            "--relaxed-timeout",
            heading=CLIENT,
            help="socket timeout while a server announces maintenance; 0 leaves the timeout as it is",
        ),
    ] = field(default=Seconds(10.0), name="relaxed_timeout")
    endpoint_type: Annotated[
        EndpointType,
        setting(
            "--endpoint-type",
            heading=CLIENT,
            metavar="TYPE",
            help="how a maintenance notification names the server to move to: {choices}",
        ),
    ] = EndpointType.AUTO
    server_stats_s: Annotated[
        SecondsOrOff,
        setting("--server-stats", help="how often the coordinator reads INFO of every server during the load, or off"),
    ] = field(default=SecondsOrOff(1.0), name="server_stats")
    track_hot_keys: Annotated[
        bool,
        setting(
            "--track-hot-keys",
            is_switch=True,
            help="let servers count their hottest keys during the load (HOTKEYS, Redis 8.6); costs them CPU time",
        ),
    ] = False
    retry: Annotated[Retry, described("when and how often failed calls are repeated")] = Retry()
    keepalive: Annotated[Keepalive, described("TCP keepalive of the connections")] = Keepalive()
    tls: Annotated[Tls, described("TLS, for targets of rediss://")] = Tls()
    sentinel: Annotated[Sentinel, described("user and password for the Sentinels")] = Sentinel()
    cluster: Annotated[Cluster, described("cluster clients")] = Cluster()

    @property
    def is_given(self) -> bool:
        """Whether the plan names a target."""
        return bool(self.url) or self.embedded is not None

    def __repr__(self) -> str:
        """Never shows the password: plans end up in logs."""
        return f"Target(url={self.url!r}, username={self.username!r}, password={REDACTED if self.password else None!r})"
