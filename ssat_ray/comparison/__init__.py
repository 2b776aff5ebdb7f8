"""`ssat compare`: finished runs, sweeps and MLflow as one table, what its numbers settle, what to choose."""
