"""From files, flags and the environment to one typed plan: sources, layers, parsing, profiles and passwords."""
