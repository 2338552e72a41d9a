"""What a run will need before it starts: tokens, FLOPs, bytes, and from a short measurement seconds and memory."""
