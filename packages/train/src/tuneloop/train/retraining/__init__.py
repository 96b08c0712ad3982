"""The retraining worker: claims a request, builds its data, trains, gates, registers."""
