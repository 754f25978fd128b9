"""Pub/sub in a worker process: headers of published messages, and subscriptions that receive messages."""
