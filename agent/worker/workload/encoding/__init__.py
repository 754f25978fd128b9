"""Requests of many operations at once, encoded as RESP by numpy, for the wire driver."""
