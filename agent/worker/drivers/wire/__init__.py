"""The `wire` driver: RESP at wire speed over connections that redis-py has opened.

From the bottom to the top; each module imports only those above it:

poller       epoll or kqueue
rows         the record of a worker, one packed row a batch
requests     requests in blocks, queues of them, and batches
connection   a node's connections: a batch out, its replies in
replies      raw replies that must be looked at one by one
routing      which node gets which requests; redirections
worker       a pool's worker: which connection issues what, and when
event_loop   one loop for all workers of a process, and threads for calls that block
pool_runner  all of it, as the runner of a pool
"""
