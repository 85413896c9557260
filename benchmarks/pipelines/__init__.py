"""Trained ladders in stock loops of diffusers: what plans bring where people sample."""
