"""What does everything but the drifts cost?"""
