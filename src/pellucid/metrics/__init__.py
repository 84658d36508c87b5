"""How explanations are compared and judged."""
