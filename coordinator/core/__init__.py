"""What a coordinator decides: events and the time in, actions out. Pure; `coordinator.loop` performs the actions."""
