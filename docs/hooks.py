"""What mkdocs takes from the project itself: figures from benchmarks/results, pictures, the public address."""
