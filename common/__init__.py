"""What the coordinator and the agents both speak. Imports neither of them."""
