"""The plan: what a recipe will need and cost, told before anything is loaded, downloaded or rented; without torch."""
