"""Client instances, and the pools that lend them to worker threads or tasks."""
