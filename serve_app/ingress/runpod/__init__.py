"""RunPod's dialect."""
