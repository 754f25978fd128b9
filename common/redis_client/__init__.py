"""plan.target -> redis-py clients and connections. The only place that builds them, and the only import of redis.

    address      what the plan says, as redis-py's arguments          connections  redis-py's connections, observed
    policy       retries                                              sentinels    finding the primary
    clusters     a cluster's client                                   clients      all of it put together
    topology     which nodes there are                                in_force     what redis-py makes of it
    translate    errors in one line, and how an operation ended       slots        where a key lives in a cluster
    questions    a client that knows what it asked last

Facts about redis-py that this stands on are held by a contract test (tests/common/redis_client/):
- every connection of a pool is made with the pool's keyword arguments, so a `connection_class` can be given our own;
- `_connect` opens one socket; `connect_check_health` is that and the handshake; `disconnect` is the only way out, may
  come twice, and comes while the error that caused it is being handled;
- `Backoff.compute` is called exactly once for every retry, of a command as of a connect; `Retry` is deep-copied into
  each connection;
- an error that is not among a `Retry`'s supported errors passes through all of it at once.
"""

from __future__ import annotations

from common.redis_client.address import address_of as address_of
from common.redis_client.address import connection_arguments as connection_arguments
from common.redis_client.client_assembly import connects_when_built as connects_when_built
from common.redis_client.clients import Client as Client
from common.redis_client.clients import build_client as build_client
from common.redis_client.clients import open_control_client as open_control_client
from common.redis_client.clients import ping_target as ping_target
from common.redis_client.clients import tcp_pools as tcp_pools
from common.redis_client.cluster_topology import SLOTS as SLOTS
from common.redis_client.cluster_topology import slot_of as slot_of
from common.redis_client.connection_tracking import REDIRECTS as REDIRECTS
from common.redis_client.connection_tracking import ConnectionEvents as ConnectionEvents
from common.redis_client.control_client import checked_replies as checked_replies
from common.redis_client.effective_settings import effective_client_settings as effective_client_settings
from common.redis_client.error_translation import TARGET_ERRORS as TARGET_ERRORS
from common.redis_client.error_translation import Failure as Failure
from common.redis_client.error_translation import error_reply as error_reply
from common.redis_client.error_translation import failure_of as failure_of
from common.redis_client.error_translation import got_no_reply as got_no_reply
from common.redis_client.error_translation import translate as translate
from common.redis_client.error_translation import translated as translated
from common.redis_client.tls import TlsFacts as TlsFacts
from common.redis_client.tls import tls_facts as tls_facts
from common.redis_client.topology import PRIMARY as PRIMARY
from common.redis_client.topology import REPLICA as REPLICA
from common.redis_client.topology import Node as Node
from common.redis_client.topology import nodes_of as nodes_of
from common.redis_client.topology import open_node_client as open_node_client
