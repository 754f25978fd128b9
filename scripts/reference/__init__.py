"""The generated tables of the documentation: flags, plan, profiles, commands, summary, exit codes."""
