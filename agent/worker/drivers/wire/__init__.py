"""The `wire` driver: RESP at wire speed over the connections that redis-py has opened.

loop       one event loop for all wire pools of a process
poller     epoll or kqueue
connector  connections opened beside the loop
channel    one connection: a batch out, its replies in
driver     a pool's worker: which connection issues what, and when
source     requests, drawn ahead or one by one
means      what such a worker works with
routes     which node of a cluster has which slots
redirects  what nodes of a cluster send elsewhere
settling   what became of each operation of a batch
record     what was done, a row a batch
host       all of it, as a driver's host
"""
