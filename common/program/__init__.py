"""What both programs have around their work: command line, standard streams, signals and version."""
