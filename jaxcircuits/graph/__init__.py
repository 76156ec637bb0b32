"""From edges to circuits."""
