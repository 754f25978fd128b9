"""The protocol between coordinator and agents: messages, their encoding, sockets, keys and tokens."""
