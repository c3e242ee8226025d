"""What studies are built from, and what knows nothing of them: files, circuits, measures, jobs,
reports."""
