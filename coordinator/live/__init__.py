"""What people watch while a run goes on."""
