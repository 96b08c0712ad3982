-- MLflow's tables live in a database of their own beside tuneloop's; runs once, when the volume is new.
CREATE DATABASE mlflow;
