"""The `wire` driver: RESP at wire speed over connections that redis-py has opened.

Its modules, bottom up: each imports only modules above it in this list.

poller       epoll or kqueue
batch_rows   the record of a worker: one packed row for each batch
requests     blocks, queues and batches of requests
connection   a node's connections: sends a batch, reads its replies
replies      parses raw replies one by one, where that is necessary
routing      which node gets which requests; redirections
worker       a pool's worker: which connection sends what, and when
event_loop   one loop for all workers of a process, and threads for blocking calls
pool_runner  the runner of a pool, which puts all of this together
"""
