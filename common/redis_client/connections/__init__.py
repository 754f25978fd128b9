"""One connection to a server: what it reports, why it fails, when it is retried. For threads and for asyncio."""
