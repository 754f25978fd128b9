"""What coordinator and agents send each other, and how: messages, their encoding, sockets, keys and tokens."""
