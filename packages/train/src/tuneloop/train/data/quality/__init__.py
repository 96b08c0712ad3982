"""Are rows fit to learn from? The guide's checklist, executable: looked at, judged by the recipe, shown and counted."""
