"""RESP requests of many operations at once, packed by numpy, for the wire driver.

`request_packer` turns one command into segments, `workload.segments` writes them, and `stream` puts the commands
in order.
"""
