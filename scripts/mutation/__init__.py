"""Mutation run: do the fast tests notice when one line of the code is wrong?"""
