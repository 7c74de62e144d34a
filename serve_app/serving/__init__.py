"""What the deployments share of Ray: handles, GPUs, logs, metrics."""
