"""Code that coordinator and agents share. It imports neither of them."""
