"""From result files alone: tidy frames, tables, figures, claims, and what a script ends with."""
