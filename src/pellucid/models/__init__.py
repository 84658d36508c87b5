"""Models by name or by path: the embedded default, a user's function, an exported program, scikit-learn."""
