"""Subscriptions of workers, and what became of the messages that were published."""
