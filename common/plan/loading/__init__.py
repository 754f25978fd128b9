"""From what people write to one typed plan: sources, layers, parsing, secrets, and errors that name the place."""
