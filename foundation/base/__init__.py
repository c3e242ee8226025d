"""Checks, places and files, on which everything else stands."""
