"""Makes redis-py clients and connections from `plan.target`. No other package imports redis or hiredis.

    one connection, its events and retries, for both: connections/
    no I/O, for both:   address, client_assembly
    for threads:        cluster, clients, pubsub; control_client, topology (both outside the load)
    for asyncio:        async_cluster, async_clients, async_pubsub
    for both:           sentinels, read_split, error_translation, effective_settings
    for the driver `wire`: wire_connections

The package relies on these facts about redis-py, which tests/common/test_redis_client_contract.py checks:
- a pool passes its keyword arguments to every connection, so our `connection_class` can take additional ones;
- `_connect` opens one socket; `connect_check_health` calls it and does the handshake; `disconnect` is the only way to
  close, may be called twice, and is called while the error that caused it is being handled;
- `Backoff.compute` is called exactly once for each retry of a command or a connect; `Retry` is deep-copied into each
  connection;
- a `Retry` raises an error at once unless its class is among the `Retry`'s supported errors.
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
from common.redis_client.connections.cluster_topology import SLOTS as SLOTS
from common.redis_client.connections.cluster_topology import slot_of as slot_of
from common.redis_client.connections.connection_tracking import NO_ENDPOINT as NO_ENDPOINT
from common.redis_client.connections.connection_tracking import REDIRECTS as REDIRECTS
from common.redis_client.connections.connection_tracking import ConnectionEvents as ConnectionEvents
from common.redis_client.connections.tls import TlsFacts as TlsFacts
from common.redis_client.connections.tls import tls_facts as tls_facts
from common.redis_client.control_client import BAD_REPLY_ERRORS as BAD_REPLY_ERRORS
from common.redis_client.control_client import checked_replies as checked_replies
from common.redis_client.effective_settings import effective_client_settings as effective_client_settings
from common.redis_client.error_translation import TARGET_ERRORS as TARGET_ERRORS
from common.redis_client.error_translation import error_reply as error_reply
from common.redis_client.error_translation import got_no_reply as got_no_reply
from common.redis_client.error_translation import translate as translate
from common.redis_client.error_translation import translated as translated
from common.redis_client.failures import Failure as Failure
from common.redis_client.failures import describe_failure as describe_failure
from common.redis_client.failures import failure_of as failure_of
from common.redis_client.topology import PRIMARY as PRIMARY
from common.redis_client.topology import REPLICA as REPLICA
from common.redis_client.topology import Node as Node
from common.redis_client.topology import nodes_of as nodes_of
from common.redis_client.topology import open_node_client as open_node_client
