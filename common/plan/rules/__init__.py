"""What types cannot express: whether the parts of a plan agree with each other."""
