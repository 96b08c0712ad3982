"""MLflow's aliases: they mirror the routes. `accounting` says what they should say, `watch` sees to it."""
