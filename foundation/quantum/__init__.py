"""Circuits, what a device adds to them, and the spin ring."""
