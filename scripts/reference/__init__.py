"""The tables of the documentation that follow from the code: flags, plan, profiles, commands, summary, exit codes."""
