"""One folder for every question; each script's docstring says what it measures. README.md has the answers."""
