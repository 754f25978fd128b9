"""`scripts/mutants`: do the fast tests detect a wrong line of code?"""
