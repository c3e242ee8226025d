"""What is measured of a model, and how far a model is from one that never saw the poison."""
