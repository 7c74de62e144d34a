"""qwen-camera-edit: Qwen-Image-Edit-2511 behind RunPod's and OpenAI's HTTP dialects, on Ray Serve."""

__version__ = "0.1.0"
