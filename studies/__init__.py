"""What is asked: the studies, and the models and methods that only they need."""
