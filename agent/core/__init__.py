"""What an agent decides: events and the time in, actions out. Pure; `agent.loop` performs the actions."""
