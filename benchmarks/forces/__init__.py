"""Force fields: what plans do to averages, and what they save on real checkpoints."""
